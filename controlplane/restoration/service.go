package restoration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/rest"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// Paths of the Service.
const (
	// StatusPath answers a GET with a fleethub.Standing.
	StatusPath = "/coracle/v1/restore"
	// ConfirmPath takes a POST of a [Request] and answers with a [Result] per node.
	ConfirmPath = StatusPath + "/confirm"
	// AdoptPath likewise.
	AdoptPath = StatusPath + "/adopt"
)

// Request says what is to be settled.
type Request struct {
	// Nodes, all that are there if empty; of Confirm also those that come later.
	Nodes []string `json:"nodes,omitempty"`
	// DryRun says what Adopt would do and changes nothing.
	DryRun bool `json:"dryRun,omitempty"`
}

// Result is what became of one node; the answers are these, one JSON object a
// line, as they become known.
type Result struct {
	Node string `json:"node"`
	// Settled: the node belongs to this incarnation of the cluster.
	Settled bool `json:"settled"`
	// Error is why it isn't.
	Error string `json:"error,omitempty"`
	// Objects that were brought back, or not.
	Objects []Object `json:"objects,omitempty"`
}

// Object that a node holds and the cluster had forgotten.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
	// Done says that it is in the API (or would be, in a dry run).
	Done bool `json:"done"`
	// Note is why not, or what is other than it was.
	Note string `json:"note,omitempty"`
}

// Hub is what fleethub.Hub is.
type Hub interface {
	Standing() fleethub.Standing
	Confirm(ctx context.Context) error
	AdoptNode(name string) error
	AwaitPods(ctx context.Context, name string, uids []string) error
	Repeat(name string, uids []string)
}

// Config of a Service. All of it but Logger is needed.
type Config struct {
	// Hub returns nil as long as there is none in this process.
	Hub func() Hub
	// ClientConfig makes clients in this process that act as a user.
	ClientConfig func(user string, groups ...string) *rest.Config
	// Former has what is created in the context it returns keep its UID; see
	// apiserver.WithFormerIdentity.
	Former func(ctx context.Context, uid types.UID, created metav1.Time) context.Context
	// Nodes reaches the API of a node at NODE:10250.
	Nodes  http.RoundTripper
	Logger *slog.Logger
}

// Service settles restores.
type Service struct {
	c  Config
	mu sync.Mutex // one request at a time
}

// New returns a Service.
func New(c Config) (*Service, error) {
	if c.Hub == nil || c.ClientConfig == nil || c.Former == nil || c.Nodes == nil {
		return nil, errors.New("restoration: Hub, ClientConfig, Former and Nodes are needed")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{c: c}, nil
}

var (
	// ErrNoHub is returned while no hub works in this process.
	ErrNoHub = errors.New("the fleet hub doesn't work here (yet)")
	// ErrBusy is returned while another request is being carried out.
	ErrBusy = errors.New("another `coracle restore` is under way")
	// ErrUnmarked is returned when etcd was put back and nobody said so.
	ErrUnmarked = errors.New("etcd was put back without `coracle restore`: stop the control plane, run `coracle restore mark`, and start it again; until then nothing can be settled")
)

const (
	atOnce = 8 // nodes that are worked on
	// nodeTimeout is for one node: what it holds may come over a satellite.
	nodeTimeout = 5 * time.Minute
	// adoptTimeout is from the hub's word to the node's answer.
	adoptTimeout = time.Minute
)

// Handler serves the paths. Who may use them is its caller's to decide.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, s.serveStatus)
	mux.HandleFunc("POST "+ConfirmPath, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, s.confirm) })
	mux.HandleFunc("POST "+AdoptPath, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, s.adopt) })
	return mux
}

func (s *Service) serveStatus(w http.ResponseWriter, _ *http.Request) {
	hub := s.c.Hub()
	if hub == nil {
		http.Error(w, ErrNoHub.Error(), http.StatusServiceUnavailable)
		return
	}
	standing := hub.Standing()
	if standing.Incarnation == "" {
		http.Error(w, ErrNoHub.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(standing) // the reader may be gone
}

// action settles what a request asks for; it calls tell with every result.
type action func(ctx context.Context, hub Hub, who user.Info, request Request, tell func(Result)) error

func (s *Service) serve(w http.ResponseWriter, r *http.Request, do action) {
	var request Request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&request); err != nil {
		http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
		return
	}
	who, ok := apirequest.UserFrom(r.Context())
	if !ok {
		http.Error(w, "nobody asks", http.StatusUnauthorized)
		return
	}
	hub := s.c.Hub()
	if hub == nil || hub.Standing().Incarnation == "" {
		http.Error(w, ErrNoHub.Error(), http.StatusServiceUnavailable)
		return
	}
	if !s.mu.TryLock() {
		http.Error(w, ErrBusy.Error(), http.StatusConflict)
		return
	}
	defer s.mu.Unlock()
	s.c.Logger.Info("restore is being settled", "path", r.URL.Path, "by", who.GetName(), "nodes", request.Nodes, "dryRun", request.DryRun)
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	var mu sync.Mutex
	begun := false
	err := do(r.Context(), hub, who, request, func(result Result) {
		mu.Lock()
		defer mu.Unlock()
		if !begun {
			w.Header().Set("Content-Type", "application/x-ndjson")
			begun = true
		}
		_ = out.Encode(result)
		_ = flush.Flush()
	})
	if err != nil && !begun {
		code := http.StatusInternalServerError
		if errors.Is(err, ErrUnmarked) || errors.Is(err, fleethub.ErrNotRestored) || errors.Is(err, errNotThere) {
			code = http.StatusConflict
		}
		http.Error(w, err.Error(), code)
	}
}

var errNotThere = errors.New("nothing to settle")

// chosen are the nodes that a request means.
func chosen(standing fleethub.Standing, request Request) ([]fleethub.Unsettled, error) {
	if len(request.Nodes) == 0 {
		return standing.Unsettled, nil
	}
	var out []fleethub.Unsettled
	for _, name := range request.Nodes {
		i := slices.IndexFunc(standing.Unsettled, func(u fleethub.Unsettled) bool { return u.Node == name })
		if i < 0 {
			if slices.Contains(standing.Away, name) {
				return nil, fmt.Errorf("%w: node %s hasn't spoken since the control plane began; what it runs isn't known", errNotThere, name)
			}
			return nil, fmt.Errorf("%w: node %s isn't of before a restore, or isn't known", errNotThere, name)
		}
		out = append(out, standing.Unsettled[i])
	}
	return out, nil
}

func (s *Service) confirm(ctx context.Context, hub Hub, _ user.Info, request Request, tell func(Result)) error {
	standing := hub.Standing()
	nodes, err := chosen(standing, request)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(nodes, func(u fleethub.Unsettled) bool { return u.Later }) {
		return ErrUnmarked
	}
	if len(request.Nodes) == 0 {
		if err := hub.Confirm(ctx); err != nil {
			return err
		}
	}
	s.each(ctx, nodes, func(ctx context.Context, u fleethub.Unsettled) {
		r := Result{Node: u.Node}
		if !u.There {
			r.Error = "it is away"
			if len(request.Nodes) == 0 {
				r.Error += ": it follows when it comes"
			}
		} else if err := s.move(ctx, hub, u.Node); err != nil {
			r.Error = err.Error()
		} else {
			r.Settled = true
		}
		tell(r)
	})
	return nil
}

// each does one thing for every node, several at once.
func (s *Service) each(ctx context.Context, nodes []fleethub.Unsettled, do func(context.Context, fleethub.Unsettled)) {
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, u := range nodes {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
			defer cancel()
			do(ctx, u)
		})
	}
	all.Wait()
}

// move adopts a node and waits until it says that it follows.
func (s *Service) move(ctx context.Context, hub Hub, node string) error {
	if err := hub.AdoptNode(node); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	for {
		if !slices.ContainsFunc(hub.Standing().Unsettled, func(u fleethub.Unsettled) bool { return u.Node == node }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %s was told and hasn't answered; it is asked again when it comes", node)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
