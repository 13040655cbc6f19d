package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

func service(t testing.TB, ip string) []byte {
	t.Helper()
	s := &v1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"},
		Spec: v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{{Name: "https", Protocol: v1.ProtocolTCP, Port: 443}}}}
	var b strings.Builder
	scheme := runtime.NewScheme()
	if err := protobuf.NewSerializer(scheme, scheme).Encode(s, &b); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

// table is what iptables would have: chains of rules.
type table map[string][]string

func newTable() table { return table{"PREROUTING": nil, "OUTPUT": nil} }

func (n table) run(args ...string) error {
	if args[0] == "-n" {
		args = args[1:]
	}
	verb, name, rule := args[0], args[1], strings.Join(args[2:], " ")
	if _, ok := n[name]; ok == (verb == "-N") {
		return errors.New("no such chain, or there is one: " + name)
	}
	i := slices.Index(n[name], rule)
	switch verb {
	case "-N":
		n[name] = nil
	case "-F":
		n[name] = nil
	case "-X":
		delete(n, name)
	case "-A":
		n[name] = append(n[name], rule)
	case "-C", "-D":
		if i < 0 {
			return errors.New("no such rule")
		}
		if verb == "-D" {
			n[name] = slices.Delete(n[name], i, i+1)
		}
	case "-L":
	default:
		return errors.New("unknown verb " + verb)
	}
	return nil
}

func TestRulesFollowServiceAndAddresses(t *testing.T) {
	var raw []byte
	var api []string
	rules := newTable()
	p, err := New(Config{Service: func() []byte { return raw }, API: func() []string { return api }, Log: slog.New(slog.DiscardHandler), Run: rules.run,
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == "plane.example" {
				return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil
			}
			return nil, errors.New("no such host " + host)
		}})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name    string
		service []byte
		api     []string
		want    string // the rule; empty: none
		fails   bool
	}{
		{name: "nothing known yet"},
		{name: "no address", service: service(t, "10.43.0.1")},
		{name: "loopback would be the pod's own", service: service(t, "10.43.0.1"), api: []string{"https://127.0.0.1:6443"}},
		{name: "an address", service: service(t, "10.43.0.1"), api: []string{"https://127.0.0.1:6443", "https://192.0.2.1:6443"},
			want: "-d 10.43.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 192.0.2.1:6443"},
		{name: "a name that can't be resolved keeps what was", service: service(t, "10.43.0.1"), api: []string{"https://nowhere.example:6443"},
			want: "-d 10.43.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 192.0.2.1:6443", fails: true},
		{name: "the second has a name, and no port", service: service(t, "10.43.0.1"), api: []string{"https://nowhere.example:6443", "https://plane.example"},
			want: "-d 10.43.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 192.0.2.7:443"},
		{name: "no pod refers to it any more", api: []string{"https://192.0.2.9"},
			want: "-d 10.43.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 192.0.2.7:443"},
		{name: "one does again", service: service(t, "10.43.0.1"), api: []string{"https://192.0.2.9"},
			want: "-d 10.43.0.1/32 -p tcp --dport 443 -j DNAT --to-destination 192.0.2.9:443"},
		{name: "headless", service: service(t, "None"), api: []string{"https://192.0.2.1:6443"}},
	} {
		raw, api = step.service, step.api
		if err := p.reconcile(t.Context()); (err != nil) != step.fails {
			t.Errorf("%s: err = %v", step.name, err)
		}
		if got := strings.Join(rules[chain], "\n"); got != step.want {
			t.Errorf("%s: rules\n%s\nwant\n%s", step.name, got, step.want)
		}
		for _, hook := range hooks {
			if step.want != "" && !slices.Equal(rules[hook], []string{"-j " + chain}) {
				t.Errorf("%s: %s has %q", step.name, hook, rules[hook])
			}
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := rules[chain]; ok || len(rules["OUTPUT"])+len(rules["PREROUTING"]) > 0 {
		t.Errorf("after Close: %q", rules)
	}
}

// What an agent that was killed left is taken over, once.
func TestRulesOfAFormerAgentAreReplaced(t *testing.T) {
	rules := newTable()
	rules[chain] = []string{"old"}
	rules["OUTPUT"] = []string{"-j " + chain}
	p, err := New(Config{Service: func() []byte { return service(t, "10.43.0.1") }, API: func() []string { return []string{"https://192.0.2.1"} },
		Log: slog.New(slog.DiscardHandler), Run: rules.run})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(rules[chain]) != 1 || rules[chain][0] == "old" || len(rules["OUTPUT"]) != 1 || len(rules["PREROUTING"]) != 1 {
		t.Errorf("%q", rules)
	}
}

// A rule that isn't taken is tried again without anybody's asking.
func TestFailureIsTriedAgain(t *testing.T) {
	rules, failures := newTable(), 0
	done := make(chan struct{})
	p, err := New(Config{Service: func() []byte { return service(t, "10.43.0.1") }, API: func() []string { return []string{"https://192.0.2.1"} },
		Log: slog.New(slog.DiscardHandler), Changed: make(chan struct{}),
		Run: func(args ...string) error {
			if args[0] == "-A" && args[1] == chain {
				if failures++; failures == 1 {
					return errors.New("busy")
				}
				defer close(done)
			}
			return rules.run(args...)
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it wasn't tried again")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestWithoutIPTablesTheReasonIsSaid(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Config{}); !errors.Is(err, ErrNoTools) {
		t.Fatalf("err = %v", err)
	}
	if _, err := exec.LookPath("iptables"); err == nil {
		t.Fatal("iptables was found in an empty folder")
	}
}
