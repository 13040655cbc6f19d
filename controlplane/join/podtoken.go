package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// podTokenTimeout bounds one request, the API's part included.
const podTokenTimeout = 15 * time.Second

// podToken gives an admitted node what the API gives it.
func (s *Server) podToken(w http.ResponseWriter, r *http.Request) {
	node, err := s.admitted(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.refuse(w, r, fmt.Errorf("%w at once; try again in some seconds", enrollment.ErrBusy))
		return
	}
	deadline := time.Now().Add(podTokenTimeout)
	_ = http.NewResponseController(w).SetReadDeadline(deadline)
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	body, err := enrollment.ReadAtMost(r.Body, enrollment.MaxBody)
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: body: %v", enrollment.ErrBadRequest, err))
		return
	}
	request, err := parsePodTokenRequest(body)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	token, err := s.cfg.PodToken(ctx, node, request)
	if err != nil {
		err = fmt.Errorf("token of pod %s/%s for %q: %w", request.Namespace, request.Pod, request.Audience, err)
		if status := apierrors.APIStatus(nil); errors.As(err, &status) {
			err = fmt.Errorf("%w: %w", enrollment.ErrBadRequest, err) // the API's word, of this request
		}
		s.refuse(w, r, err)
		return
	}
	answer(w, http.StatusOK, token)
}

func parsePodTokenRequest(body []byte) (enrollment.PodTokenRequest, error) {
	var r enrollment.PodTokenRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return r, fmt.Errorf("%w: %v", enrollment.ErrBadRequest, err)
	}
	if r.Namespace == "" || r.ServiceAccount == "" || r.Pod == "" || r.PodUID == "" || r.Audience == "" || r.Seconds < 0 {
		return r, fmt.Errorf("%w: a pod token needs namespace, serviceAccount, pod, podUID and audience, and seconds that aren't negative", enrollment.ErrBadRequest)
	}
	return r, nil
}
