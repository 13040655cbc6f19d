package wasm

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzRecord: records that a power cut tore, or that a later version wrote.
func FuzzRecord(f *testing.F) {
	path := filepath.Join(f.TempDir(), "record.json")
	config, err := proto.Marshal(&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "x"},
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b"}, {ContainerPath: "/c", HostPath: "/d", Readonly: true}}, LogPath: "0.log"})
	if err != nil {
		f.Fatal(err)
	}
	if err := writeRecord(path, &containerRecord{Version: 1, ID: "a", Config: config, RestAt: &logMark{1, 2, 3}}, true); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add([]byte(`{"id":"../../etc","config":"//8="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		var c containerRecord
		if readRecord(path, &c) == nil {
			if cfg, err := c.config(); err == nil {
				_ = containerName(cfg.GetMetadata(), c.SandboxID)
				if got := (&runtimeapi.ContainerConfig{Mounts: c.mounts()}); !proto.Equal(got, &runtimeapi.ContainerConfig{Mounts: cfg.GetMounts()}) {
					t.Errorf("the mounts %v, decoded alone %v", cfg.GetMounts(), got.GetMounts())
				}
			}
		}
		var s sandboxRecord
		if readRecord(path, &s) == nil {
			if cfg, err := s.config(); err == nil {
				_ = sandboxName(cfg.GetMetadata())
			}
		}
	})
}
