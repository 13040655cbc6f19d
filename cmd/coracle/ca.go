package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// ca is what the subcommands share.
type ca struct{ dataDir, pkiDir, kubeconfig string }

func caCommand() *cobra.Command {
	var c ca
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "The cluster's root: what it is, a new one, the end of the former",
		Long: `The root that boards pin. A rotation has two steps, which may be months apart:

    coracle ca rotate    a new root signs; the former is trusted as before
    coracle ca retire    the former is trusted no more, and its key destroyed

Between the two every node renews, and gets the new root. One that is away all the
time comes back even after the second: the new root was certified by the former.
To be run where the control plane's data folder is; a control plane that runs
takes it over within seconds, and restarts nothing.`,
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.dataDir, "data-dir", defaultDataDir(), "the data folder of `coracle up`")
	f.StringVar(&c.pkiDir, "pki-dir", "", "the control plane's pki folder, where it isn't below --data-dir")
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "the administrator's kubeconfig, to ask for nodes")
	cmd.AddCommand(c.statusCommand(), c.rotateCommand(), c.retireCommand())
	return cmd
}

// open never makes a PKI: that would be another cluster's.
func (c *ca) open() (*pki.Authority, error) {
	dir := c.pkiDir
	if dir == "" {
		dir = filepath.Join(up.Layout{Root: c.dataDir}.ControlPlane(), "pki")
	}
	if _, err := os.Stat(filepath.Join(dir, "ca.crt")); err != nil {
		return nil, fmt.Errorf("no cluster's keys in %s (%w): give --data-dir or --pki-dir, on the machine of the control plane", dir, err)
	}
	return pki.Open(pki.Options{Dir: dir})
}

// behind lists nodes in good standing whose certificate isn't the active root's.
func (c *ca) behind(cmd *cobra.Command, a *pki.Authority) (behind []string, all int, err error) {
	client, err := clientFor(c.kubeconfig)
	if err != nil {
		return nil, 0, err
	}
	records, err := noderecord.Store{Client: client}.List(cmd.Context())
	if err != nil {
		return nil, 0, err
	}
	for _, r := range records {
		if r.Refused() != nil {
			continue
		}
		all++
		if !a.SignedByActive(r.Certificate) {
			behind = append(behind, r.Node)
		}
	}
	return behind, all, nil
}

func (c *ca) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show all roots, and which nodes still have a certificate of a former one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := c.open()
			if err != nil {
				return err
			}
			if err := printRoots(cmd.OutOrStdout(), a); err != nil {
				return err
			}
			behind, all, err := c.behind(cmd, a)
			if err != nil {
				return fmt.Errorf("which nodes have the new root: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d of %d nodes have a certificate of the active root", all-len(behind), all)
			if len(behind) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "; not yet: %s", strings.Join(behind, ", "))
			}
			fmt.Fprintln(cmd.OutOrStdout())
			return nil
		},
	}
}

func printRoots(out io.Writer, a *pki.Authority) error {
	list, err := a.Generations()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROOT\tSTATE\tFROM\tUNTIL\tSHA256")
	for _, g := range list {
		state := "retired"
		switch {
		case g.Active:
			state = "active"
		case g.Trusted:
			state = "trusted"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", g.Number, state, day(g.From), day(g.Until), g.Hash)
	}
	return w.Flush()
}

func (c *ca) rotateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Let a new root sign, certified by the one before; both are trusted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := c.open()
			if err != nil {
				return err
			}
			if err := a.Rotate(); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if err := printRoots(out, a); err != nil {
				return err
			}
			fmt.Fprint(out, `A running control plane takes this over within seconds, and nodes that are there get
the new root within minutes: coracle ca status. Then, at any time later:

  - an external broker: make its files again (coracle broker mosquitto) and reload it
  - other control planes: copy the pki folder to each, `+"`roots.json`"+` last
  - copies of the kubeconfig: take the new one, before the former root is retired
  - coracle ca retire
`)
			return nil
		},
	}
}

func (c *ca) retireCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "retire",
		Short: "End trust in the former root and destroy its key",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := c.open()
			if err != nil {
				return err
			}
			if !force {
				behind, _, err := c.behind(cmd, a)
				if err != nil {
					return fmt.Errorf("which nodes have the new root: %w; --force doesn't ask", err)
				}
				if len(behind) > 0 {
					return fmt.Errorf("%w: %s; wait for them, or give --force: they come back all the same, by the certificate that the former root gave the new one",
						errBehind, strings.Join(behind, ", "))
				}
			}
			if err := a.Retire(); err != nil {
				return err
			}
			return printRoots(cmd.OutOrStdout(), a)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if nodes haven't renewed since")
	return cmd
}

// errBehind is returned when nodes still have a certificate of the former root.
var errBehind = errors.New("nodes still have a certificate of the former root")
