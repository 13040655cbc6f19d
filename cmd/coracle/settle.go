package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/controlplane/restoration"
)

func restoreStatusCommand() *cobra.Command {
	var kubeconfig, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a restore has left open: nodes of before it, and what they run that the cluster doesn't know",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := clientFor(kubeconfig)
			if err != nil {
				return err
			}
			var s fleethub.Standing
			raw, err := client.CoreV1().RESTClient().Get().AbsPath(restoration.StatusPath).DoRaw(cmd.Context())
			if err == nil {
				err = json.Unmarshal(raw, &s)
			}
			if err != nil {
				return operationError("restore status", err)
			}
			if output == "json" {
				_, err := cmd.OutOrStdout().Write(raw)
				return err
			}
			return printStanding(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for all of it")
	return cmd
}

func printStanding(out io.Writer, s fleethub.Standing) error {
	if r := s.Restore; r == nil {
		fmt.Fprintln(out, "etcd was never put back.")
	} else {
		from := "by other means than `coracle restore`"
		if r.Snapshot != "" {
			from = fmt.Sprintf("to %s (revision %d)", r.Snapshot, r.Revision)
		}
		state := "not confirmed: nodes of before keep what they run"
		if s.Confirmed {
			state = "confirmed: nodes of before follow as they come"
		}
		fmt.Fprintf(out, "etcd was put back %s at %s; %s.\n", from, r.At.Local().Format(time.DateTime), state)
	}
	unknown := 0
	for _, u := range s.Unsettled {
		unknown += len(u.Unknown)
	}
	switch {
	case len(s.Unsettled) == 0:
		fmt.Fprintln(out, "No node that is there waits to be settled.")
	default:
		fmt.Fprintf(out, "%d nodes wait to be settled; they run %d pods that the cluster doesn't know:\n\n", len(s.Unsettled), unknown)
		if err := printUnsettled(out, s.Unsettled); err != nil {
			return err
		}
		if s.Unsettled[0].Later {
			fmt.Fprintf(out, "\n%v.\n", restoration.ErrUnmarked)
		} else {
			fmt.Fprintln(out, "\n`coracle restore adopt` brings these pods back into the cluster, `coracle restore confirm` has them stop.")
		}
	}
	if len(s.Away) > 0 {
		fmt.Fprintf(out, "\nNot heard of since the control plane began, so what they run isn't known: %s\n", strings.Join(s.Away, ", "))
	}
	return nil
}

func printUnsettled(out io.Writer, list []fleethub.Unsettled) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tPOD\tUID\tIN THE CLUSTER\tON THE NODE")
	for _, u := range list {
		state := "there"
		if !u.There {
			state = "away"
		}
		if u.Incomplete {
			state += ", runs more"
		}
		if len(u.Unknown)+len(u.Missing) == 0 {
			fmt.Fprintf(w, "%s\t%s\t(as in the cluster)\t\t\t\n", u.Node, state)
		}
		for _, p := range u.Unknown {
			fmt.Fprintf(w, "%s\t%s\t%s/%s\t%s\tunknown\truns\n", u.Node, state, p.Namespace, p.Name, p.UID)
		}
		for _, p := range u.Missing {
			fmt.Fprintf(w, "%s\t%s\t%s/%s\t%s\tknown\tabsent\n", u.Node, state, p.Namespace, p.Name, p.UID)
		}
	}
	return w.Flush()
}

func restoreConfirmCommand() *cobra.Command {
	return settleCommand(restoration.ConfirmPath, false, &cobra.Command{
		Use:   "confirm",
		Short: "Have the nodes follow the cluster as it is now: what it doesn't know stops",
		Long: `Have the nodes of before the restore follow the cluster as it is now. Pods that
they run and the cluster doesn't know stop. Nodes that are away follow when they
come, until another restore. With --node only these nodes follow, now.`,
	})
}

func restoreAdoptCommand() *cobra.Command {
	return settleCommand(restoration.AdoptPath, true, &cobra.Command{
		Use:   "adopt",
		Short: "Bring the pods that nodes run and the cluster has forgotten back into the cluster",
		Long: `Bring the pods that nodes run and the cluster has forgotten back into the API, with
the ConfigMaps and Secrets that they refer to, out of what the nodes hold. They keep
their UIDs, so none restarts. A pod whose owner the cluster has forgotten comes
back without it; apply the owner again, and it takes its pods by their labels.

What a node hands back is created by your own rights and admitted as any other
object; look at it with --dry-run if you don't trust a node. A node of which one pod
can't be brought back is left as it is, and what it runs goes on.`,
	})
}

func settleCommand(path string, canDryRun bool, cmd *cobra.Command) *cobra.Command {
	var kubeconfig string
	var request restoration.Request
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := clientFor(kubeconfig)
		if err != nil {
			return err
		}
		body, err := json.Marshal(request)
		if err != nil {
			return err
		}
		what := "restore " + cmd.Name()
		post := client.CoreV1().RESTClient().Post().AbsPath(path).Body(body)
		stream, err := post.Stream(cmd.Context())
		if err != nil {
			return operationError(what, err)
		}
		defer stream.Close()
		return printResults(cmd.OutOrStdout(), what, stream, request.DryRun)
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	f.StringArrayVar(&request.Nodes, "node", nil, "only this node; may be repeated")
	if canDryRun {
		f.BoolVar(&request.DryRun, "dry-run", false, "say what would be done and change nothing")
	}
	return cmd
}

// printResults shows each node as it is done.
func printResults(out io.Writer, what string, results io.Reader, dryRun bool) error {
	lines := bufio.NewScanner(results)
	lines.Buffer(nil, 16<<20)
	open, settled := 0, 0
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var r restoration.Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		state := "settled"
		switch {
		case r.Error != "":
			state = "not settled: " + r.Error
			open++
		case dryRun:
			state = "could be settled"
		default:
			settled++
		}
		fmt.Fprintf(out, "node %s: %s\n", r.Node, state)
		for _, o := range r.Objects {
			done := "brought back"
			switch {
			case !o.Done:
				done = "not brought back: "
			case dryRun:
				done = "would be brought back"
			}
			if o.Done && o.Note != "" {
				done += ", "
			}
			fmt.Fprintf(out, "  %s %s/%s: %s%s\n", o.Kind, o.Namespace, o.Name, done, o.Note)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if open > 0 {
		return fmt.Errorf("%s: %d of %d nodes are not settled", what, open, open+settled)
	}
	if settled == 0 && !dryRun {
		fmt.Fprintln(out, "No node that is there waited to be settled.")
	}
	return nil
}
