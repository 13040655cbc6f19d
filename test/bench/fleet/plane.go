package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// plane is the control plane and the broker.
type plane struct {
	dir       string
	control   rig.Program
	mosquitto *rig.Program // nil: embedded
	broker    string       // mosquitto's host:port
	fleet     string       // the fleet endpoint's
	client    kubernetes.Interface
	raw       rest.Interface
}

func (b *bench) startPlane(ctx context.Context, dir, lose string) (*plane, error) {
	p := &plane{dir: filepath.Join(dir, "controlplane")}
	p.control = rig.Program{Name: filepath.Join(b.bin, "controlplane"), Log: filepath.Join(dir, "controlplane.log"),
		Args: []string{"--data-dir", p.dir, "--port-fallback", "--log-level", "warn"}}
	if lose == loseMosquitto {
		if err := p.prepareMosquitto(dir); err != nil {
			return nil, err
		}
		if err := p.startMosquitto(ctx); err != nil {
			return nil, err
		}
		p.control.Args = append(p.control.Args, "--mqtt-url", "mqtts://"+p.broker)
	}
	if err := p.startControl(ctx); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *plane) startControl(ctx context.Context) error {
	raw, err := rig.StartControlPlane(ctx, &p.control, p.dir)
	if err != nil {
		return err
	}
	var run struct {
		Fleet string `json:"fleet"`
	}
	if err := json.Unmarshal(raw, &run); err != nil {
		return fmt.Errorf("what the control plane says of itself: %w", err)
	}
	p.fleet = strings.TrimPrefix(run.Fleet, "https://")
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(p.dir, "kubeconfig"))
	if err != nil {
		return err
	}
	cfg.QPS = -1 // client-go's own limit of five calls a second would be measured, too
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	set, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	p.client, p.raw = set, set.CoreV1().RESTClient()
	return nil
}

// prepareMosquitto writes its configuration, with a certificate of the cluster's.
func (p *plane) prepareMosquitto(dir string) error {
	bin, err := exec.LookPath("mosquitto")
	if err != nil {
		if bin = "/usr/sbin/mosquitto"; !exists(bin) {
			return errors.New("-broker mosquitto: there is none on this machine (apt-get install mosquitto)")
		}
	}
	authority, err := pki.Open(pki.Options{Dir: filepath.Join(p.dir, "pki")})
	if err != nil {
		return err
	}
	leaf, err := authority.Broker("127.0.0.1")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return err
	}
	p.broker = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	acl, conf := filepath.Join(dir, "mosquitto.acl"), filepath.Join(dir, "mosquitto.conf")
	text := broker.MosquittoConf("127.0.0.1", port, broker.MosquittoFiles{CA: authority.CAFile(), Cert: leaf.CertFile(), Key: leaf.KeyFile(), ACL: acl})
	// It would become another user, who may not read the cluster's keys.
	text += "user root\n"
	p.mosquitto = &rig.Program{Name: bin, Args: []string{"-c", conf}, Log: filepath.Join(dir, "mosquitto.log")}
	return errors.Join(os.WriteFile(acl, []byte(broker.MosquittoACL()), 0o600), os.WriteFile(conf, []byte(text), 0o600))
}

// startMosquitto returns when it accepts connections.
func (p *plane) startMosquitto(ctx context.Context) error {
	if err := p.mosquitto.Start(); err != nil {
		return err
	}
	if err := rig.Until(ctx, 30*time.Second, "mosquitto listens", func() bool {
		c, err := net.Dial("tcp", p.broker)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}); err != nil {
		return fmt.Errorf("%w\n%s", err, p.mosquitto.Tail())
	}
	return nil
}

func (p *plane) stop() {
	p.control.Stop(20 * time.Second)
	if p.mosquitto != nil {
		p.mosquitto.Kill()
	}
}

// revision is etcd's: each write is one more.
func (p *plane) revision(ctx context.Context) (float64, error) {
	raw, err := p.raw.Get().AbsPath("/api/v1/namespaces").Param("limit", "1").SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return 0, err
	}
	return strconv.ParseFloat(list.Metadata.ResourceVersion, 64)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
