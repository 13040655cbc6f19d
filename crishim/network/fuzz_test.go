package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Whatever a plugin prints, the pod has addresses or an error, and so has its end.
func FuzzPluginResult(f *testing.F) {
	const good = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24","interface":0}]}`
	f.Add([]byte(good))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24","interface":1}]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24","interface":-1}]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[null],"ips":[null]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","interfaces":[null],"ips":[null],"routes":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[null]}}`))
	f.Add([]byte(`{"code":7,"msg":"no"}`))
	bin, conf := f.TempDir(), f.TempDir()
	printed := filepath.Join(bin, "printed")
	for name, text := range map[string]string{
		filepath.Join(bin, "prints"):         "#!/bin/sh\nexec cat '" + printed + "'\n",
		filepath.Join(conf, "a.conflist"):    `{"cniVersion":"1.0.0","name":"fuzz","plugins":[{"type":"prints"}]}`,
		filepath.Join(conf, "unrelated.txt"): "",
	} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	c := &CNI{ConfDir: conf, BinDirs: []string{bin}}
	cfg := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(printed, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		ips, err := c.Attach(t.Context(), "fuzz", "/proc/self/ns/net", cfg)
		if err == nil && len(ips) == 0 {
			t.Error("neither an address nor an error")
		}
		for _, ip := range ips {
			if _, err := netip.ParseAddr(ip); err != nil {
				t.Errorf("%q gives the address %q", raw, ip)
			}
		}
		_ = c.Detach(t.Context(), "fuzz", "/proc/self/ns/net", cfg)
	})
}

// The folder of addresses that the plugin host-local and we share: what is torn in
// it gives no address twice and none outside of the range.
func FuzzReservations(f *testing.F) {
	f.Add("10.9.0.3", "other\r\neth0", "10.9.0.3")
	f.Add("10.9.0.2", "", "10.9.0.255\n")
	f.Add("::1", "me\r\neth0", "::ffff:10.9.0.3")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, name, owner, last string) {
		if !filepath.IsLocal(name) || filepath.Base(name) != name || name == "." {
			return
		}
		here := filepath.Join(dir, "net")
		if err := os.RemoveAll(here); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(here, 0o755); err != nil {
			t.Fatal(err)
		}
		if os.WriteFile(filepath.Join(here, name), []byte(owner), 0o600) != nil {
			return // no name for a file
		}
		_ = os.WriteFile(filepath.Join(here, "last_reserved_ip.0"), []byte(last), 0o600)
		h, ok := newHostLocal(dir, "net", rangeConf{Subnet: netip.MustParsePrefix("10.9.0.0/29")})
		if !ok {
			t.Fatal("no range")
		}
		a, err := h.get("me")
		if err != nil {
			return
		}
		if a.String() == name || a.Less(h.from) || h.to.Less(a) || a == h.gateway {
			t.Errorf("with %q in the folder and %q as the last: %s", name, last, a)
		}
	})
}
