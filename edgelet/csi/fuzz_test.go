package csi

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzReplies(f *testing.F) {
	f.Add([]byte("\x0a\x01n\x10\x05\x1a\x08\x0a\x06\x0a\x01k\x12\x01v"))
	f.Add([]byte("1.0.0,v1.99999999999999999999,2"))
	f.Add([]byte("\x0a\x04\x0a\x02\x08\x01"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if i, err := decodeInfo(raw); err == nil && i.NodeID == "" {
			t.Error("no node ID")
		}
		_, _ = decodeCapabilities(raw)
		_, _ = decodeUsage(raw)
		_, _ = capacityOf(raw)
		if v, ok := highest(strings.Split(string(raw), ",")); ok && v[0] != 1 {
			t.Errorf("%q is version %v", raw, v)
		}
	})
}

func FuzzRecord(f *testing.F) {
	raw, _ := json.Marshal(record{PodUID: "u", Name: "n", Driver: "d", Handle: "h", Target: "/t"})
	f.Add(raw)
	f.Add([]byte(`{"podUID":"..","specVolID":"a/b"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRecord(raw)
		if err != nil {
			return
		}
		m := New(Config{RecordDir: "/records"})
		if path := m.recordPath(r); filepath.Dir(filepath.Dir(path)) != "/records" {
			t.Errorf("a record outside: %s", path)
		}
		if !filepath.IsAbs(r.Target) {
			t.Errorf("target %q", r.Target)
		}
	})
}
