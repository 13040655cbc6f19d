package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/cmd/coracle/image"
	"github.com/coracle-edge/coracle/cmd/coracle/registry"
	"github.com/coracle-edge/coracle/cmd/coracle/up"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Make, push and import images"}
	cmd.AddCommand(imagePushCommand(), imageImportCommand())
	return cmd
}

func imagePushCommand() *cobra.Command {
	var hostsDir string
	cmd := &cobra.Command{
		Use:   "push MODULE.wasm REGISTRY/NAME:TAG",
		Short: "Push a WebAssembly module as a CNCF Wasm OCI artifact",
		Long: `Makes a CNCF Wasm OCI artifact of a module and pushes it to any registry.

Credentials are docker's ($DOCKER_CONFIG or ~/.docker/config.json). Mirrors and
certificate authorities are read from a registry hosts directory in containerd's
layout; the default is the local cluster's, and else /etc/containerd/certs.d.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			module, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			a, err := image.New(module, time.Time{})
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if hostsDir == "" {
				hostsDir = defaultHostsDir()
			}
			digest, err := image.Push(cmd.Context(), a, args[1], hostsDir)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s@%s\n", args[1], digest)
			return nil
		},
	}
	cmd.Flags().StringVar(&hostsDir, "hosts-dir", "", "registry hosts directory (containerd's certs.d layout)")
	return cmd
}

func defaultHostsDir() string {
	local := (&registry.Registry{Dir: up.Layout{Root: defaultDataDir()}.Registry()}).HostsDir()
	for _, dir := range []string{local, "/etc/containerd/certs.d"} {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
	}
	return ""
}

func imageImportCommand() *cobra.Command {
	var nodeDir, ref string
	cmd := &cobra.Command{
		Use:   "import ARCHIVE|LAYOUT",
		Short: "Give a node of this machine an image from an OCI archive or layout, without any registry",
		Long: `Hands an OCI archive (a tar, as skopeo's oci-archive: or docker save write it)
or an OCI layout folder to the edgelet of this machine, which keeps a Wasm
artifact itself and gives any other image to containerd. ARCHIVE may be "-".`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := findNodeDir(nodeDir)
			if err != nil {
				return err
			}
			body, err := image.OpenArchive(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer body.Close()
			return importImage(cmd.Context(), filepath.Join(dir, "run", "edgelet.sock"), ref, body, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&nodeDir, "node-dir", "", "the edgelet's data folder (default: /var/lib/coracle, or the local cluster's only node)")
	cmd.Flags().StringVar(&ref, "ref", "", "the name to give the image (default: the names that the archive's index holds)")
	return cmd
}

// findNodeDir returns the data folder of the one edgelet that is meant.
func findNodeDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	nodes, err := filepath.Glob(up.Layout{Root: defaultDataDir()}.Node("*"))
	if err != nil {
		return "", err
	}
	if len(nodes) == 0 {
		nodes = []string{"/var/lib/coracle"}
	}
	if len(nodes) > 1 {
		return "", fmt.Errorf("there are %d nodes here; say which: --node-dir %s", len(nodes), strings.Join(nodes, " | "))
	}
	return nodes[0], nil
}

func importImage(ctx context.Context, socket, ref string, body io.Reader, out io.Writer) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	u := "http://edgelet/v1/images/import"
	if ref != "" {
		u += "?ref=" + url.QueryEscape(ref)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no edgelet answers at %s: %w; is it running, and may you open the socket?", socket, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("import: %s", strings.TrimSpace(string(text)))
	}
	_, err = out.Write(text)
	return err
}
