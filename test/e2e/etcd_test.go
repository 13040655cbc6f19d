package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdMember is one member of an external etcd, as its process is told.
type etcdMember struct {
	Name, Dir, Peer, Client, Cluster string
}

// etcdMain is what the test binary does as a member.
func etcdMain(raw string) {
	var m etcdMember
	if err := json.Unmarshal([]byte(raw), &m); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	one := func(text string) []url.URL {
		u, err := url.Parse(text)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return []url.URL{*u}
	}
	c := embed.NewConfig()
	c.Name, c.Dir = m.Name, m.Dir
	c.ListenPeerUrls, c.AdvertisePeerUrls = one(m.Peer), one(m.Peer)
	c.ListenClientUrls, c.AdvertiseClientUrls = one(m.Client), one(m.Client)
	c.InitialCluster = m.Cluster
	c.EnableGRPCGateway = false
	c.UnsafeNoFsync = true // three members sync one disk here
	c.LogLevel = "error"
	e, err := embed.StartEtcd(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-e.Err()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startEtcd starts three members, each a process, and returns where they serve.
func startEtcd(t *testing.T) (addresses []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	members := make([]etcdMember, 3)
	var cluster []string
	for i := range members {
		members[i] = etcdMember{Name: fmt.Sprint("e", i), Dir: t.TempDir(), Peer: "http://" + freeAddress(t), Client: "http://" + freeAddress(t)}
		cluster = append(cluster, members[i].Name+"="+members[i].Peer)
		addresses = append(addresses, strings.TrimPrefix(members[i].Client, "http://"))
	}
	for _, m := range members {
		m.Cluster = strings.Join(cluster, ",")
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "CORACLE_TEST_ETCD="+string(raw))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	for _, a := range addresses {
		eventually(t, 30*time.Second, func() error {
			conn, err := net.Dial("tcp", a)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	return addresses
}

// cuttable is a way to some addresses that can be cut: connections that stand end,
// new ones are refused.
type cuttable struct {
	mu        sync.Mutex
	cut       bool
	conns     map[net.Conn]bool
	endpoints []string
}

func newCuttable(t *testing.T, to []string) *cuttable {
	t.Helper()
	c := &cuttable{conns: map[net.Conn]bool{}}
	for _, address := range to {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		c.endpoints = append(c.endpoints, "http://"+l.Addr().String())
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go c.pass(conn, address)
			}
		}()
	}
	t.Cleanup(func() { c.set(true) })
	return c
}

func (c *cuttable) pass(from net.Conn, address string) {
	defer from.Close()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	c.mu.Lock()
	if c.cut {
		c.mu.Unlock()
		return
	}
	c.conns[from] = true
	c.mu.Unlock()
	go func() {
		io.Copy(to, from)
		to.Close()
	}()
	io.Copy(from, to)
	c.mu.Lock()
	delete(c.conns, from)
	c.mu.Unlock()
}

func (c *cuttable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for conn := range c.conns {
			conn.Close()
		}
	}
}
