package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/kubernetes"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// TracePath serves what is known of one pod's way, as JSON: [TraceAnswer].
const TracePath = "/debug/coracle/trace"

// component is how the API server signs its steps.
const component = "apiserver"

// TraceAnswer is the body of TracePath?uid=UID and ?namespace=NS&pod=NAME.
type TraceAnswer struct {
	Namespace string        `json:"namespace,omitempty"`
	Pod       string        `json:"pod,omitempty"`
	UID       string        `json:"uid"`
	Node      string        `json:"node,omitempty"`
	Events    []trace.Event `json:"events"`
}

type requestTraceKey struct{}

// requestTrace collects the steps of one request until the pod's UID is known.
type requestTrace struct {
	mu     sync.Mutex
	events []trace.Event
}

// mark notes a step in the request of ctx, if that request may create a pod.
func mark(ctx context.Context, step trace.Step, detail string) {
	t, ok := ctx.Value(requestTraceKey{}).(*requestTrace)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, trace.Event{Step: step, Component: component, Time: time.Now(), Detail: detail})
}

// flush records the request's steps under uid.
func flush(ctx context.Context, recorder *trace.Recorder, uid string) {
	t, ok := ctx.Value(requestTraceKey{}).(*requestTrace)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.events {
		recorder.Record(uid, e)
	}
	t.events = nil
}

// traceReceived is the outermost handler: it starts a trace for requests that
// may create a pod (POST, and PATCH for server-side apply).
func traceReceived(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if (req.Method == http.MethodPost || req.Method == http.MethodPatch) && createsPod(req.URL.Path) {
			ctx := context.WithValue(req.Context(), requestTraceKey{}, &requestTrace{})
			mark(ctx, trace.Received, req.Method+" "+req.URL.Path)
			req = req.WithContext(ctx)
		}
		next.ServeHTTP(w, req)
	})
}

// createsPod is whether path is /api/v1/namespaces/NS/pods[/NAME].
func createsPod(path string) bool {
	rest, ok := strings.CutPrefix(path, "/api/v1/namespaces/")
	if !ok {
		return false
	}
	parts := strings.Split(strings.TrimSuffix(rest, "/"), "/")
	return (len(parts) == 2 || len(parts) == 3) && parts[1] == "pods"
}

// traceAuthorized is the innermost handler: the filters before it have let the request pass.
func traceAuthorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mark(req.Context(), trace.Authorized, "")
		next.ServeHTTP(w, req)
	})
}

// tracedAuthenticator marks the step of the authenticator it wraps.
type tracedAuthenticator struct{ authenticator.Request }

func (a tracedAuthenticator) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := a.Request.AuthenticateRequest(req)
	if ok && err == nil {
		mark(req.Context(), trace.Authenticated, resp.User.GetName())
	}
	return resp, ok, err
}

// tracedAdmission marks when the last mutating and the last validating plugin
// returned. The strategy's validation runs between the two.
type tracedAdmission struct {
	inner admission.Interface
}

var (
	_ admission.MutationInterface   = tracedAdmission{}
	_ admission.ValidationInterface = tracedAdmission{}
)

func (a tracedAdmission) Handles(op admission.Operation) bool { return a.inner.Handles(op) }

func (a tracedAdmission) Admit(ctx context.Context, attr admission.Attributes, o admission.ObjectInterfaces) error {
	if m, ok := a.inner.(admission.MutationInterface); ok {
		if err := m.Admit(ctx, attr, o); err != nil {
			return err
		}
	}
	mark(ctx, trace.Admitted, "")
	return nil
}

func (a tracedAdmission) Validate(ctx context.Context, attr admission.Attributes, o admission.ObjectInterfaces) error {
	if v, ok := a.inner.(admission.ValidationInterface); ok {
		if err := v.Validate(ctx, attr, o); err != nil {
			return err
		}
	}
	mark(ctx, trace.Validated, "")
	return nil
}

// tracedStorage records when etcd acknowledged a pod, its node and its phase Running.
type tracedStorage struct {
	storage.Interface
	recorder *trace.Recorder
}

func (s *tracedStorage) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	if err := s.Interface.Create(ctx, key, obj, out, ttl); err != nil {
		return err
	}
	if pod, ok := out.(*api.Pod); ok {
		flush(ctx, s.recorder, string(pod.UID))
		s.record(pod, trace.Stored, "")
		if pod.Spec.NodeName != "" {
			s.record(pod, trace.Bound, pod.Spec.NodeName)
		}
	}
	return nil
}

func (s *tracedStorage) GuaranteedUpdate(ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, tryUpdate storage.UpdateFunc, cached runtime.Object,
) error {
	// tryUpdate may run several times and may change its input in place.
	var uid, node string
	var phase api.PodPhase
	observe := func(input runtime.Object, meta storage.ResponseMeta) (runtime.Object, *uint64, error) {
		if pod, ok := input.(*api.Pod); ok {
			uid, node, phase = string(pod.UID), pod.Spec.NodeName, pod.Status.Phase
		}
		return tryUpdate(input, meta)
	}
	if err := s.Interface.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, observe, cached); err != nil {
		return err
	}
	pod, ok := destination.(*api.Pod)
	if !ok {
		return nil
	}
	if uid == "" { // server-side apply creates through an update
		flush(ctx, s.recorder, string(pod.UID))
		s.record(pod, trace.Stored, "")
	}
	if node == "" && pod.Spec.NodeName != "" {
		s.record(pod, trace.Bound, pod.Spec.NodeName)
	}
	if phase != api.PodRunning && pod.Status.Phase == api.PodRunning {
		s.record(pod, trace.StatusStored, string(pod.Status.Phase))
	}
	return nil
}

// seenAfter is who sees, through a watch, that a step was stored.
var seenAfter = map[trace.Step]trace.Step{trace.Stored: trace.Queued, trace.Bound: trace.Ordered, trace.StatusStored: trace.Observed}

// record notes that etcd has a step. A watcher may be told before the answer to
// the write is here; then etcd had it by the time the watcher saw it.
func (s *tracedStorage) record(pod *api.Pod, step trace.Step, detail string) {
	at := time.Now()
	if seen, ok := s.recorder.Time(string(pod.UID), seenAfter[step]); ok && seen.Before(at) {
		at = seen
	}
	s.recorder.Record(string(pod.UID), trace.Event{Step: step, Component: component, Time: at, Detail: detail})
}

// traceHandler serves TracePath.
func traceHandler(recorder *trace.Recorder, client kubernetes.Interface) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		answer := TraceAnswer{Namespace: q.Get("namespace"), Pod: q.Get("pod"), UID: q.Get("uid")}
		if answer.UID == "" {
			if answer.Namespace == "" {
				answer.Namespace = metav1.NamespaceDefault
			}
			if answer.Pod == "" {
				http.Error(w, "say ?pod=NAME, with &namespace=NAMESPACE, or ?uid=UID", http.StatusBadRequest)
				return
			}
			pod, err := client.CoreV1().Pods(answer.Namespace).Get(req.Context(), answer.Pod, metav1.GetOptions{})
			if err != nil {
				code := http.StatusInternalServerError
				if apierrors.IsNotFound(err) {
					code = http.StatusNotFound
				}
				http.Error(w, err.Error(), code)
				return
			}
			answer.UID, answer.Node = string(pod.UID), pod.Spec.NodeName
		}
		answer.Events = recorder.Events(answer.UID)
		if answer.Events == nil {
			http.Error(w, fmt.Sprintf("nothing is remembered of pod %s/%s (uid %s): only the last %d pods since the control plane started are",
				answer.Namespace, answer.Pod, answer.UID, trace.DefaultPods), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(answer)
	})
}
