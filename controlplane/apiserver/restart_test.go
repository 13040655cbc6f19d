package apiserver_test

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// keepsAnObject creates an object, restarts, and finds it by the same keys.
func keepsAnObject(t *testing.T, dir string, config datastore.Config) {
	t.Helper()
	r, err := start(dir, config)
	if err != nil {
		t.Fatal(err)
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"k": "v"}}
	created, err := r.admin(t).CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	root := r.pki.RootHash()
	if err := r.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if r, err = start(dir, config); err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	got, err := r.admin(t).CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
	if err != nil || got.UID != created.UID || got.Data["k"] != "v" || r.pki.RootHash() != root {
		t.Fatalf("after the restart: %+v, %v", got, err)
	}
	if out := r.mustKubectl(t, "", "get", "--raw", "/readyz?verbose"); out == "" {
		t.Error("empty readyz")
	}
}

func TestRestartOnTheSameFolder(t *testing.T) {
	dir := t.TempDir()
	keepsAnObject(t, dir, datastore.Config{Dir: filepath.Join(dir, "etcd")})
}

func TestExternalEtcdOverTLS(t *testing.T) {
	dir := t.TempDir()
	keys, err := pki.Open(pki.Options{Dir: filepath.Join(dir, "etcd-pki")})
	if err != nil {
		t.Fatal(err)
	}
	serving, err := keys.Serving("etcd")
	if err != nil {
		t.Fatal(err)
	}
	client, err := keys.Client("etcd-client", "coracle")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := startEtcd(t, filepath.Join(dir, "external"), keys.CAFile(), serving.CertFile(), serving.KeyFile())
	keepsAnObject(t, dir, datastore.Config{
		Endpoints: []string{endpoint}, CAFile: keys.CAFile(), CertFile: client.CertFile(), KeyFile: client.KeyFile(),
	})
	if _, err := os.Stat(filepath.Join(dir, "etcd")); err == nil {
		t.Error("there is an embedded etcd beside the external one")
	}
}

// startEtcd runs an etcd that listens, with client certificates required.
func startEtcd(t *testing.T, dir, ca, cert, key string) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = dir
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = ca, cert, key
	c.ClientTLSInfo.ClientCertAuth = true
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return "https://" + e.Clients[0].Addr().String()
}
