package wasmpods

import (
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// outboundImage has a guest that connects to others.
const outboundImage = "wasmpods.example/outbound:1"

// Where its pod asks for it, a guest connects to other pods and finds the names that
// its pod gives it.
func TestOutboundSockets(t *testing.T) {
	b := newBed(t)
	module := lab.Wasm(t, filepath.Join("..", "wasi", "sockets", "outbound.c"))
	if err := importImage("board-1", lab.Archive(lab.Compat(module, "compat"), ""), outboundImage); err != nil {
		t.Fatal(err)
	}
	b.pod("server", `{containers: [{args: [http], ports: [{containerPort: 8080}]}]}`)
	server := b.ready("server", true).Status.PodIP
	spec := `
restartPolicy: Never
hostAliases: [{ip: 192.0.2.1, hostnames: [alias.example]}]
containers: [{image: "` + outboundImage + `", args: ["nonblock=` + server + `:8080", name=alias.example]}]
`
	b.podAs("client", map[string]string{"coracle.dev/wasm-sockets": "outbound"}, spec)
	b.pod("plain", spec)
	b.phase("client", corev1.PodSucceeded)
	b.logs("client", "c0", "nonblock: event 1, error 0\n", "192.0.2.1")
	// Without it there is no such call.
	b.become("plain", "is refused", func(p *corev1.Pod) bool {
		s := status(p, "c0")
		return s.State.Terminated != nil && strings.Contains(s.State.Terminated.Message, "sock_") ||
			s.State.Waiting != nil && strings.Contains(s.State.Waiting.Message, "sock_")
	})
}
