package oci

import "testing"

// FuzzParseSandbox: what another version of containerd may print.
func FuzzParseSandbox(f *testing.F) {
	f.Add(`{"pid":12,"config":{"metadata":{"name":"a","uid":"b"}},"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/run/netns/x"}]}}}`)
	f.Add(`{"config":null,"runtimeSpec":null}`)
	f.Add(`{"config":{"linux":7}}`)
	f.Fuzz(func(t *testing.T, raw string) {
		s, err := parseSandbox(raw)
		if err == nil && s.Config == nil {
			t.Error("no configuration")
		}
	})
}

func TestParseSandbox(t *testing.T) {
	s, err := parseSandbox(`{"pid":12,"config":{"metadata":{"name":"a"}},"runtimeSpec":{"linux":{"namespaces":[{"type":"ipc"},{"type":"network","path":"/run/netns/x"}]}}}`)
	if err != nil || s.PID != 12 || s.NetNS != "/run/netns/x" || s.Config.GetMetadata().GetName() != "a" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = parseSandbox(`{"config":{"metadata":7}}`); err != nil || s.Config == nil {
		t.Errorf("a configuration of another shape: %+v, %v", s, err)
	}
	if _, err = parseSandbox(""); err == nil {
		t.Error("no error for nothing")
	}
}
