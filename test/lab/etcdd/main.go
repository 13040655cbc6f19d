// Etcdd is an etcd of one member for tests that shouldn't link it: etcd's own
// command has dependencies that nothing else here has. It is called with its
// folder and the URL at which it listens.
package main

import (
	"fmt"
	"net/url"
	"os"

	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "etcdd:", err)
		os.Exit(1)
	}
}

func run(dir, endpoint string) error {
	listen, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	c := embed.NewConfig()
	c.Dir = dir
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*listen}, []url.URL{*listen}
	c.EnableGRPCGateway = false
	c.LogLevel = "error"
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	return <-e.Err()
}
