package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

func nodeCommand() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{Use: "node", Short: "Who the cluster's nodes are, and who is let in"}
	cmd.PersistentFlags().StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	cmd.AddCommand(nodeListCommand(&kubeconfig), nodeRevokeCommand(&kubeconfig), nodeReadmitCommand(&kubeconfig))
	return cmd
}

func nodeListCommand(kubeconfig *string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all that ever joined, and their standing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := clientFor(*kubeconfig)
			if err != nil {
				return err
			}
			records, damaged := noderecord.Store{Client: client}.List(cmd.Context())
			nodes, err := client.CoreV1().Nodes().List(cmd.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			if err := printNodes(cmd.OutOrStdout(), records, nodes.Items); err != nil {
				return err
			}
			return damaged
		},
	}
}

// printNodes shows one line per record; READY is what the Node object says.
func printNodes(out io.Writer, records []noderecord.Record, nodes []corev1.Node) error {
	ready := map[string]corev1.ConditionStatus{}
	for _, n := range nodes {
		ready[n.Name] = "-"
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				ready[n.Name] = c.Status
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTANDING\tREADY\tJOINED\tKEY\tNOTE")
	for _, r := range records {
		is := ready[r.Node]
		if is == "" {
			is = "-" // it has no Node object
		}
		standing, note := describe(r)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.16s\t%s\n", r.Node, standing, is, day(r.JoinedAt), enrollment.Fingerprint(r.SigningKey), note)
	}
	return w.Flush()
}

func describe(r noderecord.Record) (standing, note string) {
	switch {
	case r.Revoked():
		return "revoked", "since " + day(r.RevokedAt) + because(r.RevokedReason)
	case r.Cloned():
		return "cloned", "since " + day(r.ClonedAt) + because(r.ClonedBetween)
	case r.Removed():
		return "removed", "its Node was deleted, noticed " + day(r.RemovedAt)
	}
	return "good", ""
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func nodeRevokeCommand(kubeconfig *string) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "End a node's identity: its board was stolen, or is no longer trusted",
		Long: `Ends a node's identity. From then on its board is refused by the broker, the
fleet endpoint, tunnels and the API, and so is every token of its pods; what is
open is ended. The board is told so; its pods go on without the cluster, because
nobody orders it anything any more. What a stolen board may have read is not
undone: docs/security.md says what to change.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientFor(*kubeconfig)
			if err != nil {
				return err
			}
			if err := (noderecord.Store{Client: client}).Revoke(cmd.Context(), args[0], why, time.Now()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked: nothing is taken from its board any more, and nothing given to it.\n"+
				"`coracle node readmit %s` takes this back. To let another board have the name: `coracle token create --replace %[1]s`.\n", args[0], args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&why, "because", "", "why, for the node's log and for `coracle node list`")
	return cmd
}

func nodeReadmitCommand(kubeconfig *string) *cobra.Command {
	return &cobra.Command{
		Use:   "readmit NODE",
		Short: "Let a node in again that was revoked, cloned, or whose Node was deleted",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientFor(*kubeconfig)
			if err != nil {
				return err
			}
			was, err := noderecord.Store{Client: client}.Readmit(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if was == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is in good standing already.\n", args[0])
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is readmitted; it was kept out because: %v.\n"+
				"A board that was refused asks every half hour at the latest; restarting edgelet on it makes it ask at once.\n", args[0], was)
			return nil
		},
	}
}
