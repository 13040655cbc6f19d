package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// AskPodToken asks the control plane for a token that a node may not sign itself,
// see ErrAudience. It returns the token and when it expires by this node's clock.
func (id *Identity) AskPodToken(ctx context.Context, r PodTokenRequest) (string, time.Time, error) {
	body, err := json.Marshal(enrollment.PodTokenRequest{Namespace: r.Namespace, ServiceAccount: r.ServiceAccount,
		Pod: r.PodName, PodUID: r.PodUID, Audience: r.Audience, Seconds: int64(r.Life / time.Second)})
	if err != nil {
		return "", time.Time{}, err
	}
	var errs []error
	for _, base := range id.FleetURLs() {
		raw, err := exchange(ctx, base, enrollment.PodTokenPath, body, id.SigningKey, id.ClientTLS(enrollment.FleetServerName))
		var answer enrollment.PodTokenAnswer
		if err == nil {
			answer, err = parsePodTokenAnswer(raw)
		}
		if err == nil {
			return answer.Token, id.Now().Add(time.Duration(answer.Seconds) * time.Second), nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", base, err))
		var u *unreachable
		if !errors.As(err, &u) && !enrollment.Temporary(err) {
			break
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("no address of the control plane is known"))
	}
	return "", time.Time{}, fmt.Errorf("token of pod %s/%s for %q, which only the control plane gives: %w", r.Namespace, r.PodName, r.Audience, errors.Join(errs...))
}

// maxTokenSeconds is longer than any token's life.
const maxTokenSeconds = 10 * 365 * 24 * 3600

func parsePodTokenAnswer(raw []byte) (enrollment.PodTokenAnswer, error) {
	var a enrollment.PodTokenAnswer
	if err := json.Unmarshal(raw, &a); err != nil {
		return a, fmt.Errorf("the answer: %w", err)
	}
	if a.Token == "" || a.Seconds <= 0 || a.Seconds > maxTokenSeconds {
		return a, fmt.Errorf("%w: the answer has no token, or one for %d seconds", enrollment.ErrInternal, a.Seconds)
	}
	return a, nil
}
