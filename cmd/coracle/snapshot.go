package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/controlplane/snapshots"
	"github.com/coracle-edge/coracle/internal/durable"
)

func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "Copies of the cluster's state (etcd), to go back to with `coracle restore`"}
	cmd.AddCommand(snapshotSaveCommand(), snapshotListCommand())
	return cmd
}

func snapshotSaveCommand() *cobra.Command {
	var kubeconfig, output string
	cmd := &cobra.Command{
		Use:   "save",
		Short: "Take a snapshot now",
		Long: `Take a snapshot now, into the control plane's folder of snapshots and, with
--output, into a file here. A snapshot holds all Secrets in clear. Keep the
control plane's pki folder with it: without it no node knows the cluster again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := clientFor(kubeconfig)
			if err != nil {
				return err
			}
			var info snapshots.Info
			raw, err := client.CoreV1().RESTClient().Post().AbsPath(snapshots.Path).DoRaw(cmd.Context())
			if err == nil {
				err = json.Unmarshal(raw, &info)
			}
			if err != nil {
				return operationError("snapshot save", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s, %s, as of revision %d\n", info.Name, bytesText(info.Size), info.Revision)
			if output == "" {
				return nil
			}
			if err := download(cmd.Context(), client, info.Name, output); err != nil {
				return fmt.Errorf("snapshot save: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "and in %s\n", output)
			return nil
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "", "a file that gets a copy")
	return cmd
}

// operationError shows what the control plane said; client-go's own text is a guess
// by the status.
func operationError(what string, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, cause := range status.Status().Details.Causes {
			if cause.Type == metav1.CauseTypeUnexpectedServerResponse && strings.TrimSpace(cause.Message) != "" {
				return fmt.Errorf("%s: %s", what, strings.TrimSpace(cause.Message))
			}
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// download brings a snapshot into file, checked and durable.
func download(ctx context.Context, client kubernetes.Interface, name, file string) (err error) {
	stream, err := client.CoreV1().RESTClient().Get().AbsPath(snapshots.Path, name).Stream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+".new-*") // 0600
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	_, err = io.Copy(f, stream)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if _, err := snapshots.Verify(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

func snapshotListCommand() *cobra.Command {
	var kubeconfig, dataDir string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the snapshots there are",
		Long: `List the snapshots that the control plane has, oldest first. With --data-dir they
are looked up in its folder, which works while it is stopped, and each is checked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dataDir != "" {
				return listFolder(cmd.OutOrStdout(), filepath.Join(controlPlaneDir(dataDir), "snapshots"))
			}
			client, err := clientFor(kubeconfig)
			if err != nil {
				return err
			}
			var a snapshots.Answer
			raw, err := client.CoreV1().RESTClient().Get().AbsPath(snapshots.Path).DoRaw(cmd.Context())
			if err == nil {
				err = json.Unmarshal(raw, &a)
			}
			if err != nil {
				return operationError("snapshot list", err)
			}
			if a.Failure != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "The last attempt failed: %s\n", a.Failure)
			}
			schedule := "none on a schedule"
			if a.Interval != "" {
				schedule = "one every " + a.Interval + " if something changed"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "In %s, %s:\n", a.Dir, schedule)
			return printSnapshots(cmd.OutOrStdout(), a.Snapshots, nil)
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "the administrator's kubeconfig")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the data folder of the control plane, or of `coracle up`")
	return cmd
}

func listFolder(out io.Writer, dir string) error {
	list, err := snapshots.List(dir)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("no snapshots in %s", dir)
	}
	fmt.Fprintf(out, "In %s:\n", dir)
	return printSnapshots(out, list, func(i snapshots.Info) string {
		if _, err := snapshots.Verify(filepath.Join(dir, i.Name)); err != nil {
			return err.Error()
		}
		return "whole"
	})
}

func printSnapshots(out io.Writer, list []snapshots.Info, state func(snapshots.Info) string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NAME\tTAKEN\tREASON\tREVISION\tSIZE")
	if state != nil {
		fmt.Fprint(w, "\tSTATE")
	}
	for _, i := range list {
		fmt.Fprintf(w, "\n%s\t%s\t%s\t%d\t%s", i.Name, i.Taken.Local().Format(time.DateTime), i.Reason, i.Revision, bytesText(i.Size))
		if state != nil {
			fmt.Fprintf(w, "\t%s", state(i))
		}
	}
	fmt.Fprintln(w)
	return w.Flush()
}

func bytesText(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// controlPlaneDir is the control plane's data folder, given that or the data
// folder of `coracle up`, which has it below.
func controlPlaneDir(dir string) string {
	for _, mark := range []string{"etcd", "pki", "snapshots"} {
		if readable(filepath.Join(dir, mark)) {
			return dir
		}
	}
	if below := (up.Layout{Root: dir}).ControlPlane(); readable(below) {
		return below
	}
	return dir
}
