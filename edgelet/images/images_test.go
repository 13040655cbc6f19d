package images

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type fakeService struct {
	mu      sync.Mutex
	present map[string]string // name to kind
	pullErr error
	pulls   []*runtimeapi.PullImageRequest
	accept  func(*runtimeapi.AuthConfig) bool
}

func (f *fakeService) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kind, ok := f.present[r.Image.Image]
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	resp := &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: "sha256:" + r.Image.Image}}
	if kind != "" {
		resp.Info = map[string]string{KindInfo: kind}
	}
	return resp, nil
}

func (f *fakeService) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pulls = append(f.pulls, r)
	if f.pullErr != nil {
		return nil, f.pullErr
	}
	if f.accept != nil && !f.accept(r.Auth) {
		return nil, errors.New("401 Unauthorized")
	}
	f.present[r.Image.Image] = KindWasm
	return &runtimeapi.PullImageResponse{ImageRef: "sha256:" + r.Image.Image}, nil
}

func TestPolicies(t *testing.T) {
	down := errors.New("dial tcp: network is unreachable")
	for name, c := range map[string]struct {
		policy      v1.PullPolicy
		present     bool
		local, boot bool
		pullErr     error
		wantPulls   int
		wantReason  string
	}{
		"absent is pulled":                             {policy: v1.PullIfNotPresent, wantPulls: 1},
		"present is not pulled":                        {policy: v1.PullIfNotPresent, present: true},
		"always pulls what is present":                 {policy: v1.PullAlways, present: true, wantPulls: 1},
		"always fails without a registry":              {policy: v1.PullAlways, present: true, pullErr: down, wantPulls: 1, wantReason: ReasonPull},
		"a restart survives a registry that is away":   {policy: v1.PullAlways, present: true, local: true, pullErr: down, wantPulls: 1},
		"a boot doesn't ask the network":               {policy: v1.PullAlways, present: true, local: true, boot: true, pullErr: down},
		"a boot pulls what isn't there":                {policy: v1.PullAlways, local: true, boot: true, wantPulls: 1},
		"never with the image present":                 {policy: v1.PullNever, present: true},
		"never without the image":                      {policy: v1.PullNever, wantReason: ReasonNeverPull},
		"the registry's own sentinel becomes a reason": {policy: v1.PullAlways, pullErr: errors.New("RegistryUnavailable: try later"), wantPulls: 1, wantReason: ReasonRegistry},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{present: map[string]string{}, pullErr: c.pullErr}
			if c.present {
				f.present["r/x:1"] = KindWasm
			}
			img, err := New(Config{Service: f}).Ensure(t.Context(), Request{PodUID: "u", Image: "r/x:1",
				Policy: c.policy, Local: c.local, LocalFirst: c.boot})
			var e *Error
			switch {
			case c.wantReason == "" && (err != nil || img.Kind != KindWasm || img.Ref == ""):
				t.Errorf("Ensure = %+v, %v", img, err)
			case c.wantReason != "" && (!errors.As(err, &e) || e.Reason != c.wantReason):
				t.Errorf("Ensure = %v, want reason %s", err, c.wantReason)
			}
			if len(f.pulls) != c.wantPulls {
				t.Errorf("%d pulls, want %d", len(f.pulls), c.wantPulls)
			}
		})
	}
}

func TestBackOffDoublesAndSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeService{present: map[string]string{}, pullErr: errors.New("manifest unknown")}
		p := New(Config{Service: f})
		r := Request{PodUID: "u", Image: "r/x:1", Policy: v1.PullIfNotPresent}
		start := time.Now()
		var at []time.Duration
		sawBackOff := false
		for len(at) < 8 {
			_, err := p.Ensure(t.Context(), r)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatal(err)
			}
			switch e.Reason {
			case ReasonPull:
				at = append(at, time.Since(start))
			case ReasonBackOff:
				sawBackOff = true
				if e.Message != `Back-off pulling image "r/x:1": ErrImagePull: manifest unknown` {
					t.Fatalf("message %q", e.Message)
				}
			}
			time.Sleep(time.Second)
		}
		want := []time.Duration{0, 10, 30, 70, 150, 310, 610, 910}
		for i := range want {
			if d := at[i] - want[i]*time.Second; d < 0 || d > 3*time.Second {
				t.Errorf("pull %d at %v, want %v", i, at[i], want[i]*time.Second)
			}
		}
		if !sawBackOff {
			t.Error("never saw ImagePullBackOff")
		}
		p.Forget("u")
		if _, err := p.Ensure(t.Context(), r); !strings.HasPrefix(err.Error(), ReasonPull) {
			t.Errorf("after Forget: %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"busybox": "busybox:latest", "localhost:5000/a": "localhost:5000/a:latest", "a:1": "a:1",
		"a@sha256:" + strings.Repeat("a", 64): "a@sha256:" + strings.Repeat("a", 64),
	} {
		if got, err := withDefaultTag(in); err != nil || got != want {
			t.Errorf("%s -> %s, %v; want %s", in, got, err, want)
		}
	}
	_, err := New(Config{Service: &fakeService{}}).Ensure(t.Context(), Request{Image: "a b", Policy: v1.PullAlways})
	var e *Error
	if !errors.As(err, &e) || e.Reason != ReasonName {
		t.Errorf("bad name: %v", err)
	}
}

func TestPullSecretsTheMostSpecificFirst(t *testing.T) {
	secret := &v1.Secret{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(
		`{"auths":{"https://reg.example.com/v2/":{"username":"host","password":"p"},
		 "reg.example.com/team":{"auth":"dGVhbTpzZWNyZXQ="},
		 "*.example.com":{"username":"glob","password":"g"},
		 "other.example.com":{"username":"no","password":"no"}}}`)}}
	auths, err := credentials([]*v1.Secret{secret}, "reg.example.com/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	var users []string
	for _, a := range auths {
		users = append(users, a.auth.Username)
	}
	if strings.Join(users, ",") != "team,host,glob" || auths[0].auth.Password != "secret" {
		t.Errorf("users = %v", users)
	}
	f := &fakeService{present: map[string]string{}, accept: func(a *runtimeapi.AuthConfig) bool { return a.GetUsername() == "host" }}
	if _, err := New(Config{Service: f}).Ensure(t.Context(), Request{Image: "reg.example.com/team/app:1",
		Policy: v1.PullIfNotPresent, Secrets: []*v1.Secret{secret}}); err != nil || len(f.pulls) != 2 {
		t.Errorf("%d pulls, %v", len(f.pulls), err)
	}
}

func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"a/b":{"auth":"eDp5"}}}`), "a/b/c:1")
	f.Fuzz(func(t *testing.T, raw []byte, image string) {
		_, _ = credentials([]*v1.Secret{{Type: v1.SecretTypeDockerConfigJson,
			Data: map[string][]byte{v1.DockerConfigJsonKey: raw}}}, image)
	})
}
