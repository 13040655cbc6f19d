package wasmpods

import (
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// jwt is a token with no more than its time in it.
func jwt(issued, expires time.Time) string {
	payload := fmt.Sprintf(`{"iat":%d,"exp":%d}`, issued.Unix(), expires.Unix())
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".none"
}

// accepted says whether the API takes a token, and as the pod's service account.
func (b *bed) accepted(token string) bool {
	b.Helper()
	r, err := cluster.client.AuthenticationV1().TokenReviews().Create(b.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return r.Status.Authenticated && r.Status.User.Username == "system:serviceaccount:"+b.ns+":default"
}

// A token that grows old is replaced under a guest that runs: what it reads then is
// another one, which the API takes. To have it grow old at once, the one in the
// volume is replaced by one that is nearly over.
func TestTheGuestSeesItsTokenRenewed(t *testing.T) {
	b := newBed(t)
	b.pod("p", `
volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600}}, {configMap: {name: kube-root-ca.crt}}]}}]
containers: [{args: [watch, /v/token], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	token := func(not string) (now string) {
		b.eventually("another token", func() error {
			lines := strings.Split(strings.TrimSpace(b.logs("p", "c0", "/v/token: ey")), "\n")
			now = strings.TrimPrefix(lines[len(lines)-1], "/v/token: ")
			if now == not || strings.Count(now, ".") != 2 || !b.accepted(now) {
				return fmt.Errorf("it has %d characters of %q", len(now), now[:min(len(now), 20)])
			}
			return nil
		})
		return now
	}
	first := token("")
	p := b.phase("p", corev1.PodRunning)
	old := jwt(time.Now().Add(-595*time.Second), time.Now().Add(5*time.Second))
	// It lies in a tmpfs that the board has mounted for itself.
	cmd := b.onBoard("sh", "-c", `cd "$0" && cat > "$(readlink ..data)/token"`, filepath.Join("/var/lib/kubelet/pods", string(p.UID), "volumes/kubernetes.io~projected/v"))
	cmd.Stdin = strings.NewReader(old)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	b.logs("p", "c0", old)
	// This has the volumes looked at again, now and not when it was to be renewed.
	b.kubectl("annotate", "configmap", "kube-root-ca.crt", "seen=again")
	b.kubectl("label", "pod", "p", "colour=green", "--overwrite")
	if second := token(first); second == old {
		t.Error("the old token is there")
	}
	if n := status(b.phase("p", corev1.PodRunning), "c0").RestartCount; n != 0 {
		t.Errorf("it was restarted %d times", n)
	}
}
