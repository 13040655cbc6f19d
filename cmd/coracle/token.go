package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/controlplane/join"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Let boards join the cluster"}
	cmd.AddCommand(tokenCreateCommand())
	return cmd
}

func tokenCreateCommand() *cobra.Command {
	var kubeconfig string
	var o join.TokenOptions
	cmd := &cobra.Command{
		Use:   "create NODE",
		Short: "Print the line to run on the board that is to become NODE",
		Long: `Makes a join token for one node and prints the line to run on its board. The
token serves the first key that uses it and no other; it expires.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientFor(kubeconfig)
			if err != nil {
				return err
			}
			o.Node, o.Wait = args[0], 15*time.Second
			line, err := join.CreateToken(cmd.Context(), client, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "edgelet --join %s\n", line)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	f.DurationVar(&o.Life, "ttl", join.DefaultTokenLife, fmt.Sprintf("how long the token may be used, at most %s", join.MaxTokenLife.Round(time.Hour)))
	f.BoolVar(&o.Replace, "replace", false, "let the board take the name of a node that exists, as after its SD card was written anew; the former board's key is worth nothing afterwards")
	f.StringArrayVar(&o.URLs, "url", nil, "where the board reaches the fleet endpoint, if not where the cluster says; may be repeated")
	return cmd
}

func clientFor(kubeconfig string) (kubernetes.Interface, error) {
	file, err := kubeconfigFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}
