package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// KindInfo is the key of ImageStatus' verbose info under which crishim says
// what an image is; a runtime that does not say has OCI images.
const KindInfo = "coracle.dev/kind"

// The kinds of image.
const (
	KindOCI  = "oci"
	KindWasm = "wasm"
)

// Reasons a container waits for its image, as in ContainerStateWaiting.Reason.
const (
	ReasonInspect    = "ImageInspectError"
	ReasonPull       = "ErrImagePull"
	ReasonBackOff    = "ImagePullBackOff"
	ReasonNeverPull  = "ErrImageNeverPull"
	ReasonName       = "InvalidImageName"
	ReasonRegistry   = "RegistryUnavailable"
	ReasonValidation = "SignatureValidationFailed"
)

// Defaults of [Config].
const (
	DefaultParallel       = 2
	DefaultBackOff        = 10 * time.Second
	DefaultBackOffMax     = 300 * time.Second
	DefaultRequestTimeout = 2 * time.Minute
)

// Service is what this package needs of a CRI ImageService, as function calls.
type Service interface {
	ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error)
	PullImage(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error)
}

// Error says why an image is not there, in a kubelet's words.
type Error struct {
	Reason  string
	Message string
	// Retry is when asking again makes sense, on the monotonic clock.
	Retry time.Time
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// Image is an image that is on the node.
type Image struct {
	// Ref is what CreateContainer is given: the runtime's own reference.
	Ref string
	// Kind is [KindOCI] or [KindWasm].
	Kind string
	// UID and Username are the image's user; at most one is set.
	UID      *int64
	Username string
	size     uint64 // bytes
}

// Request asks for one image on behalf of one pod.
type Request struct {
	PodUID  string
	Image   string // as the pod's spec says it
	Policy  v1.PullPolicy
	Handler string // runtime handler, may be empty
	// Secrets are the pod's pull secrets.
	Secrets []*v1.Secret
	Sandbox *runtimeapi.PodSandboxConfig
	// Local says that the container ran on this node from the image that is here
	// now. With LocalFirst nothing is asked of the network then, whatever the
	// policy: a board boots without it. With Local alone, a registry that can't be
	// reached doesn't keep the container from starting again.
	Local, LocalFirst bool
	// Event receives events about the image; may be nil.
	Event func(eventType, reason, message string)
	// BeforePull is called once before the network is asked; may be nil.
	BeforePull func()
}

// Config configures a [Puller].
type Config struct {
	Service Service
	// Parallel is how many pulls run at the same time; [DefaultParallel] if 0.
	// A board's memory and its link set it, not its CPUs.
	Parallel int
	// AccessFile is where is kept with which credentials images were pulled; empty:
	// nowhere.
	AccessFile string
	// Shared lets every pod use every image that is here, whatever credentials it was
	// pulled with.
	Shared bool
	// Log is told what nobody waits for; discarded if nil.
	Log *slog.Logger
}

// Puller makes images present. Safe for concurrent use.
type Puller struct {
	service Service
	slots   chan struct{}
	access  *access // nil: not asked

	log *slog.Logger

	mu      sync.Mutex
	backoff map[string]*backoff // by pod UID and image
	pulling map[string]*queue   // by image
}

// queue lets one pull of an image run at a time.
type queue struct {
	turn    chan struct{}
	waiting int
}

type backoff struct {
	delay   time.Duration
	updated time.Time
	message string
}

// New returns a Puller.
func New(c Config) *Puller {
	if c.Parallel <= 0 {
		c.Parallel = DefaultParallel
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Puller{service: c.Service, slots: make(chan struct{}, c.Parallel),
		backoff: map[string]*backoff{}, pulling: map[string]*queue{}, log: c.Log}
	if !c.Shared {
		p.access = &access{path: c.AccessFile, present: p.has}
	}
	return p
}

// has looks for an image by the runtime's own reference.
func (p *Puller) has(ctx context.Context, ref string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultRequestTimeout)
	defer cancel()
	resp, err := p.service.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return resp.GetImage().GetId() != "", err
}

// mayUse says whether the pod may use an image that is here. A container that ran from
// it may: a board restarts its pods without a registry.
func (p *Puller) mayUse(r *Request, name string, img Image) bool {
	if p.access == nil || r.Local {
		return true
	}
	auths, err := credentials(r.Secrets, name)
	if err != nil {
		auths = nil // said when they are needed
	}
	yes, err := p.access.may(name, img.Ref, auths)
	if err != nil {
		p.log.Error("the registry is asked whether a pod may use an image", "image", name, "err", err)
	}
	return yes
}

// Forget drops what is remembered of a pod.
func (p *Puller) Forget(podUID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.backoff {
		if strings.HasPrefix(key, podUID+"_") {
			delete(p.backoff, key)
		}
	}
}

// Lookup returns the image if it is present, without asking the network.
func (p *Puller) Lookup(ctx context.Context, image, handler string) (Image, bool, error) {
	name, err := withDefaultTag(image)
	if err != nil {
		return Image{}, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultRequestTimeout)
	defer cancel()
	resp, err := p.service.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{
		Image: &runtimeapi.ImageSpec{Image: name, RuntimeHandler: handler}, Verbose: true})
	if err != nil {
		return Image{}, false, err
	}
	if resp.GetImage() == nil || resp.Image.Id == "" {
		return Image{}, false, nil
	}
	img := Image{Ref: resp.Image.Id, Kind: KindOCI, Username: resp.Image.Username, size: resp.Image.GetSize()}
	if resp.Info[KindInfo] == KindWasm {
		img.Kind = KindWasm
	}
	if uid := resp.Image.Uid; uid != nil {
		img.UID = &uid.Value
		img.Username = ""
	}
	return img, true, nil
}

// Ensure returns the image, pulling it if the policy asks for it. A failure is
// an [*Error], or ctx's error.
func (p *Puller) Ensure(ctx context.Context, r Request) (Image, error) {
	name, err := withDefaultTag(r.Image)
	if err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: %v", r.Image, err)
		r.event(v1.EventTypeWarning, "InspectFailed", msg)
		return Image{}, &Error{Reason: ReasonName, Message: msg}
	}
	img, present, err := p.Lookup(ctx, r.Image, r.Handler)
	if err != nil {
		if ctx.Err() != nil {
			return Image{}, ctx.Err()
		}
		msg := fmt.Sprintf("Failed to inspect image %q: %v", name, err)
		r.event(v1.EventTypeWarning, "InspectFailed", msg)
		return Image{}, &Error{Reason: ReasonInspect, Message: msg, Retry: time.Now().Add(DefaultBackOff)}
	}
	allowed := present && p.mayUse(&r, name, img)
	switch {
	case allowed && (r.Policy != v1.PullAlways || (r.Local && r.LocalFirst)):
		r.event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", r.Image))
		return img, nil
	case !allowed && r.Policy == v1.PullNever:
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
		r.event(v1.EventTypeWarning, "ErrImageNeverPull", msg)
		return Image{}, &Error{Reason: ReasonNeverPull, Message: msg, Retry: time.Now().Add(DefaultBackOff)}
	}
	pulled, err := p.pull(ctx, r, name)
	if err == nil {
		return pulled, nil
	}
	if present && r.Local && ctx.Err() == nil {
		r.event(v1.EventTypeWarning, "Pulled", fmt.Sprintf(
			"Container image %q could not be pulled, restarting from the one on the machine: %v", r.Image, err))
		return img, nil
	}
	var e *Error
	if present && !allowed && errors.As(err, &e) {
		e.Message += "; the image is on this node, but was pulled with credentials that this pod doesn't have"
	}
	return Image{}, err
}

func (r *Request) event(eventType, reason, message string) {
	if r.Event != nil {
		r.Event(eventType, reason, message)
	}
}

func (p *Puller) pull(ctx context.Context, r Request, name string) (Image, error) {
	key := r.PodUID + "_" + r.Image
	if e := p.inBackOff(key, r.Image); e != nil {
		r.event(v1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", r.Image))
		return Image{}, e
	}
	if r.BeforePull != nil {
		r.BeforePull()
	}
	r.event(v1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", r.Image))
	waited := time.Now()
	unlock, err := p.begin(ctx, name)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	started := time.Now()
	// Another pod may have brought it while this one waited for its turn.
	img, present, err := p.Lookup(ctx, r.Image, r.Handler)
	if err != nil || !present || r.Policy == v1.PullAlways || !p.mayUse(&r, name, img) {
		img, err = p.pullAndNote(ctx, r, name)
	}
	if err != nil {
		if ctx.Err() != nil {
			return Image{}, ctx.Err()
		}
		return Image{}, p.failed(r, key, err)
	}
	p.mu.Lock()
	delete(p.backoff, key)
	p.mu.Unlock()
	now := time.Now()
	r.event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.",
		r.Image, now.Sub(started).Truncate(time.Millisecond), now.Sub(waited).Truncate(time.Millisecond), img.size))
	return img, nil
}

// begin waits for this image's turn and for a free slot.
func (p *Puller) begin(ctx context.Context, name string) (func(), error) {
	p.mu.Lock()
	turn := p.pulling[name]
	if turn == nil {
		turn = &queue{turn: make(chan struct{}, 1)}
		p.pulling[name] = turn
	}
	turn.waiting++
	p.mu.Unlock()
	leave := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if turn.waiting--; turn.waiting == 0 {
			delete(p.pulling, name)
		}
	}
	select {
	case turn.turn <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		<-turn.turn
		leave()
		return nil, ctx.Err()
	}
	return func() {
		<-p.slots
		<-turn.turn
		leave()
	}, nil
}

// pullAndNote pulls, and notes whose the image is.
func (p *Puller) pullAndNote(ctx context.Context, r Request, name string) (img Image, err error) {
	auths, err := credentials(r.Secrets, name)
	if err != nil {
		return Image{}, err
	}
	fresh := false
	if p.access != nil && len(auths) > 0 {
		if fresh, err = p.access.begin(ctx, name); err != nil {
			return Image{}, err
		}
	}
	used, err := p.pullWithCredentials(ctx, r, name, auths)
	if err == nil {
		var present bool
		img, present, err = p.Lookup(ctx, r.Image, r.Handler)
		if err == nil && !present {
			err = fmt.Errorf("the runtime pulled image %q and then did not find it", r.Image)
		}
	}
	switch {
	case p.access == nil:
		return img, err
	case err == nil:
		return img, p.access.end(name, img.Ref, used)
	case fresh && ctx.Err() == nil: // what may go on without us stays noted
		return Image{}, errors.Join(err, p.access.failed(name))
	}
	return Image{}, err
}

// pullWithCredentials returns what the registry took, nil if it was asked without any.
func (p *Puller) pullWithCredentials(ctx context.Context, r Request, name string, auths []pullAuth) (*pullAuth, error) {
	spec := &runtimeapi.ImageSpec{Image: name, UserSpecifiedImage: r.Image, RuntimeHandler: r.Handler}
	tries := make([]*pullAuth, 0, len(auths)+1)
	for i := range auths {
		tries = append(tries, &auths[i])
	}
	if len(tries) == 0 {
		tries = append(tries, nil)
	}
	var errs []error
	for _, try := range tries {
		var auth *runtimeapi.AuthConfig
		if try != nil {
			auth = try.auth
		}
		_, err := p.service.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: auth, SandboxConfig: r.Sandbox})
		if err == nil {
			return try, nil
		}
		errs = append(errs, errors.New(status.Convert(err).Message()))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	return nil, errors.Join(errs...)
}

func (p *Puller) failed(r Request, key string, err error) *Error {
	e := &Error{Reason: ReasonPull, Message: err.Error()}
	for sentinel, what := range map[error]string{
		crierrors.ErrRegistryUnavailable:       "the registry is unavailable",
		crierrors.ErrSignatureValidationFailed: "the signature validation failed",
	} {
		if rest, ok := strings.CutPrefix(err.Error(), sentinel.Error()); ok {
			e.Reason = sentinel.Error()
			e.Message = fmt.Sprintf("image pull failed for %s because %s%s", r.Image, what, rest)
		}
	}
	r.event(v1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", r.Image, err))
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	b := p.backoff[key]
	switch {
	case b == nil || now.Sub(b.updated) > 2*DefaultBackOffMax:
		b = &backoff{delay: DefaultBackOff}
		p.backoff[key] = b
	default:
		b.delay = min(2*b.delay, DefaultBackOffMax)
	}
	b.updated, b.message = now, e.Error()
	e.Retry = now.Add(b.delay)
	return e
}

func (p *Puller) inBackOff(key, image string) *Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.backoff[key]
	if b == nil || time.Since(b.updated) >= b.delay {
		return nil
	}
	return &Error{Reason: ReasonBackOff, Retry: b.updated.Add(b.delay),
		Message: fmt.Sprintf("Back-off pulling image %q: %s", image, b.message)}
}

// withDefaultTag appends ":latest" to a name without tag and digest. The name
// is not otherwise normalised: the CRI is agnostic of default registries.
func withDefaultTag(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %w", image, err)
	}
	if reference.IsNameOnly(named) {
		return image + ":latest", nil
	}
	return image, nil
}

// User returns a numeric user of an image as a string, for messages.
func (i Image) User() string {
	if i.UID != nil {
		return strconv.FormatInt(*i.UID, 10)
	}
	return i.Username
}
