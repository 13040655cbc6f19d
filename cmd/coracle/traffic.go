package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// nodesPath is fleethub.NodesPath; this tool doesn't link the hub.
const nodesPath = "/debug/coracle/nodes"

// nodeTraffic is one element of its answer.
type nodeTraffic struct {
	Name       string        `json:"name"`
	Presence   string        `json:"presence"`
	LinkClass  string        `json:"linkClass"`
	Keepalive  float64       `json:"keepalive"`
	DataBudget uint64        `json:"dataBudget"`
	Heard      time.Time     `json:"heard"`
	Traffic    fleet.Traffic `json:"traffic"`
}

func trafficCommand() *cobra.Command {
	var kubeconfig, output string
	cmd := &cobra.Command{
		Use:   "traffic [NODE...]",
		Short: "Show each node's link class, when it was last heard, and the bytes between it and the control plane since that started",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientFor(kubeconfig)
			if err != nil {
				return err
			}
			request := client.CoreV1().RESTClient().Get().AbsPath(nodesPath)
			for _, node := range args {
				request = request.Param("node", node)
			}
			raw, err := request.DoRaw(cmd.Context())
			if err != nil {
				return fmt.Errorf("traffic of nodes: %w", err)
			}
			if output == "json" {
				_, err := cmd.OutOrStdout().Write(raw)
				return err
			}
			var nodes []nodeTraffic
			if err := json.Unmarshal(raw, &nodes); err != nil {
				return fmt.Errorf("traffic of nodes: %w", err)
			}
			for _, name := range args {
				if !known(nodes, name) {
					return fmt.Errorf("node %q: the fleet hub knows no node of that name; `kubectl get nodes` lists them", name)
				}
			}
			return printTraffic(cmd.OutOrStdout(), nodes, time.Now())
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for all that is known, with both directions apart")
	return cmd
}

func known(nodes []nodeTraffic, name string) bool {
	for _, n := range nodes {
		if n.Name == name {
			return true
		}
	}
	return false
}

// printTraffic shows bytes of both directions together.
func printTraffic(out io.Writer, nodes []nodeTraffic, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := []string{"NODE", "CLASS", "KEEPALIVE", "PRESENCE", "HEARD", "BUDGET/DAY"}
	for _, class := range fleet.Classes() {
		head = append(head, strings.ToUpper(class.String()))
	}
	fmt.Fprintln(w, strings.Join(append(head, "MQTT", "STREAMS"), "\t"))
	for _, n := range nodes {
		heard, budget, class := "-", "-", n.LinkClass
		if !n.Heard.IsZero() {
			heard = now.Sub(n.Heard).Round(time.Second).String() + " ago"
		}
		if n.DataBudget != 0 {
			budget = resource.NewQuantity(int64(n.DataBudget), resource.BinarySI).String()
		}
		if class == "" {
			class = "-"
		}
		row := []string{n.Name, class, (time.Duration(n.Keepalive) * time.Second).String(), n.Presence, heard, budget}
		var sum, streams int64
		for _, c := range fleet.Classes() {
			bytes := n.Traffic.Classes[c.String()].Total()
			sum += bytes
			row = append(row, fmt.Sprint(bytes))
		}
		for _, b := range n.Traffic.Streams {
			streams += b.Total()
		}
		fmt.Fprintln(w, strings.Join(append(row, fmt.Sprint(sum), fmt.Sprint(streams)), "\t"))
	}
	return w.Flush()
}
