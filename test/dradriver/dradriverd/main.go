// dradriverd is the DRA driver of test/dradriver as a program that runs in a pod, as
// vendors deploy theirs: it talks to the API with its service account and publishes
// its devices there.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-edge/coracle/test/dradriver"
)

func main() {
	d := &dradriver.Driver{Log: log.Printf}
	flag.StringVar(&d.Name, "name", "dra.example.com", "what the driver is called")
	flag.StringVar(&d.Node, "node", os.Getenv("NODE_NAME"), "the node it runs on")
	flag.StringVar(&d.KubeletDir, "kubelet-dir", "/var/lib/kubelet", "where it registers")
	flag.StringVar(&d.CDIDir, "cdi-dir", "/var/run/cdi", "where it says what its devices are")
	flag.StringVar(&d.Dir, "dir", "", "a folder, the same on the host, with one of each device")
	flag.StringVar(&d.NodeFile, "node-file", "", "a device node of the host that devices have")
	flag.StringVar(&d.Record, "asked", "", "a file to which the driver adds each request")
	devices := flag.String("devices", "d1,d2", "what it has")
	flag.Parse()
	d.Devices = strings.Split(*devices, ",")
	if err := run(d); err != nil {
		log.Fatal(err)
	}
}

func run(d *dradriver.Driver) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	if d.Client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	if err := d.Start(ctx); err != nil {
		return fmt.Errorf("driver %s on node %s: %w", d.Name, d.Node, err)
	}
	<-ctx.Done()
	d.Stop()
	return nil
}
