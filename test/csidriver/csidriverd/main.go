// csidriverd is the CSI driver of test/csidriver as a process: what runs beside a
// node, dies with it and is started again. It ends with its standard input, which
// reaches it across namespaces as signals to nsenter don't.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	csi "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/coracle-edge/coracle/test/csidriver"
)

func main() {
	name := flag.String("name", "test.example.com", "what the driver is called")
	node := flag.String("node", "", "the node's ID")
	dir := flag.String("dir", "", "where its volumes are")
	kubelet := flag.String("kubelet-dir", "/var/lib/kubelet", "where it registers")
	limit := flag.Int64("limit", 0, "how many volumes fit on a node, 0: any number")
	can := flag.String("capabilities", "STAGE_UNSTAGE_VOLUME,GET_VOLUME_STATS,EXPAND_VOLUME", "of its node service")
	register := flag.Bool("register", false, "only register the driver, which somebody else serves")
	asked := flag.String("asked", "", "a file to which the driver adds each request that changes something")
	flag.Parse()
	if err := run(&csidriver.Driver{Name: *name, NodeID: *node, Dir: *dir, Limit: *limit, Record: *asked}, *can, *kubelet, *register); err != nil {
		log.Fatal(err)
	}
}

func run(d *csidriver.Driver, can, kubelet string, register bool) error {
	for c := range strings.SplitSeq(can, ",") {
		n, ok := csi.NodeServiceCapability_RPC_Type_value[c]
		if !ok {
			return fmt.Errorf("--capabilities: there is no %q", c)
		}
		d.Capabilities = append(d.Capabilities, csi.NodeServiceCapability_RPC_Type(n))
	}
	socket := filepath.Join(kubelet, "plugins", d.Name, "csi.sock")
	registry := filepath.Join(kubelet, "plugins_registry", d.Name+"-reg.sock")
	own, serve := []string{socket, registry}, d.Serve
	if register {
		own, serve = own[1:], d.Register
	}
	for _, path := range own {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		// One that was killed leaves its socket.
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	stop, err := serve(socket, registry)
	if err != nil {
		return err
	}
	defer stop()
	end := make(chan os.Signal, 2)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		end <- syscall.SIGTERM
	}()
	<-end
	return nil
}
