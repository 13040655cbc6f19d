package main

import (
	"os/exec"
	"strings"
	"testing"
)

// D9: what the agent links is paid for on each of a thousand boards.
func TestAgentLinksNothingItMustNot(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-tags=grpcnotrace", ".").Output()
	if err != nil {
		t.Skip("go list doesn't run here:", err)
	}
	forbidden := map[string]string{
		"k8s.io/kubernetes":     "the kubelet's and the API server's own code",
		"k8s.io/apiserver":      "the API server",
		"k8s.io/client-go":      "informers and the scheme",
		"k8s.io/component-base": "metrics and feature gates",
		"k8s.io/apimachinery/pkg/runtime/serializer/json":     "codecs",
		"k8s.io/apimachinery/pkg/runtime/serializer/protobuf": "codecs",
		"github.com/emicklei/go-restful":                      "the router of upstream's streaming server: edgelet links its protocols only",
		"github.com/prometheus":                               "a registry with defaults",
		"go.etcd.io/etcd":                                     "etcd",
		"github.com/tetratelabs":                              "the agent never decodes, compiles or runs a module (D6)",
		"text/template":                                       "its use of reflection keeps every method of every type in the binary",
		"golang.org/x/net/trace":                              "build with -tags grpcnotrace",
		"github.com/coracle-edge/coracle/controlplane":        "the other side; only controlplane/api is both sides'",
	}
	// Upstream's server by URL, whose protocols below it are wanted.
	const server = "k8s.io/cri-streaming/pkg/streaming"
	n := 0
	for pkg := range strings.Lines(string(out)) {
		pkg = strings.TrimSpace(pkg)
		n++
		if pkg == server {
			t.Errorf("edgelet links %s: the server by URL", pkg)
		}
		if strings.HasPrefix(pkg, "github.com/coracle-edge/coracle/controlplane/api/") {
			continue
		}
		for f, why := range forbidden {
			if pkg == f || strings.HasPrefix(pkg, f+"/") {
				t.Errorf("edgelet links %s: %s", pkg, why)
			}
		}
	}
	if n < 100 {
		t.Fatalf("go list named %d packages only", n)
	}
}
