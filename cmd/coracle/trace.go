package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

func traceCommand() *cobra.Command {
	var kubeconfig, namespace, output string
	cmd := &cobra.Command{
		Use:   "trace POD",
		Short: "Show the way a recent pod took from kubectl apply to Running, step by step",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientFor(kubeconfig)
			if err != nil {
				return err
			}
			raw, err := client.CoreV1().RESTClient().Get().AbsPath("/debug/coracle/trace").
				Param("namespace", namespace).Param("pod", args[0]).DoRaw(cmd.Context())
			if err != nil {
				return fmt.Errorf("trace of pod %s/%s: %w", namespace, args[0], err)
			}
			if output == "json" {
				_, err := cmd.OutOrStdout().Write(raw)
				return err
			}
			var answer struct {
				Events []trace.Event `json:"events"`
			}
			if err := json.Unmarshal(raw, &answer); err != nil {
				return fmt.Errorf("trace of pod %s/%s: %w", namespace, args[0], err)
			}
			if len(answer.Events) == 0 {
				return fmt.Errorf("nothing is known of how pod %s/%s came to run: the control plane was started since, or %d later pods took its place", namespace, args[0], trace.DefaultPods)
			}
			return printTrace(cmd.OutOrStdout(), answer.Events)
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "the pod's namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for the raw events")
	return cmd
}

// printTrace shows each step with the milliseconds since the first and since
// the one before.
func printTrace(out io.Writer, events []trace.Event) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "AT ms\t+ms\t  STEP\tCOMPONENT\tDETAIL\t\n")
	first, last := events[0].Time, events[0].Time
	for _, e := range events {
		fmt.Fprintf(w, "%.1f\t%.1f\t  %s\t%s\t%s\t\n", ms(e.Time.Sub(first)), ms(e.Time.Sub(last)), e.Step, e.Component, e.Detail)
		last = e.Time
	}
	return w.Flush()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
