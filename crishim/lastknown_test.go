package crishim

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzLastKnown: a torn file is no more than a file that isn't there.
func FuzzLastKnown(f *testing.F) {
	path := filepath.Join(f.TempDir(), "last")
	l := openLastKnown(path, slog.New(slog.DiscardHandler), time.Now)
	l.ranSandbox("a", &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "x"}}})
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add([]byte(`{"boot":"` + l.boot + `","sandboxes":"AAAA"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		l := openLastKnown(path, slog.New(slog.DiscardHandler), time.Now)
		_, _ = l.listSandboxes(nil), l.listContainers(nil)
		l.sandboxIs("a", runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	})
}
