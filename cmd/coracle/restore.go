package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

func restoreCommand() *cobra.Command {
	var dataDir, binDir string
	cmd := &cobra.Command{
		Use:   "restore SNAPSHOT",
		Short: "Put the cluster's state back to a snapshot",
		Long: `Put a snapshot, a file or a name that ` + "`coracle snapshot list`" + ` shows, in the
place of the embedded etcd's data. The control plane must be stopped.

The cluster is another incarnation of itself afterwards: nodes keep all that they
run, and nothing is removed from them, until ` + "`coracle restore adopt`" + ` or
` + "`coracle restore confirm`" + ` settles it. The data that was there is kept aside.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return offline(cmd, binDir, dataDir, "--restore", args[0])
		},
	}
	mark := &cobra.Command{
		Use:   "mark [-- CONTROLPLANE-FLAGS]",
		Short: "Say that etcd was put back by other means",
		Long: `Say in etcd that it was put back to an earlier time by other means than
` + "`coracle restore`" + `: by etcdutl, or by a copy of the disk. No control plane may run on
it meanwhile. For an external etcd give the control plane's flags:

    coracle restore mark --data-dir DIR -- --etcd-endpoints https://10.0.0.1:2379 ...`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return offline(cmd, binDir, dataDir, append([]string{"--mark-restored"}, args...)...)
		},
	}
	for _, c := range []*cobra.Command{cmd, mark} {
		c.Flags().StringVar(&dataDir, "data-dir", defaultDataDir(), "the data folder of the control plane, or of `coracle up`")
		c.Flags().StringVar(&binDir, "bin-dir", "", "where controlplane is (default: beside coracle)")
	}
	cmd.AddCommand(mark, restoreStatusCommand(), restoreAdoptCommand(), restoreConfirmCommand())
	return cmd
}

// offline runs controlplane for what is to be done while none runs: it has etcd
// of the version that will run on the data.
func offline(cmd *cobra.Command, binDir, dataDir string, args ...string) error {
	if binDir == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		binDir = filepath.Dir(self)
	}
	dir, err := filepath.Abs(controlPlaneDir(dataDir))
	if err != nil {
		return err
	}
	program := exec.CommandContext(cmd.Context(), filepath.Join(binDir, "controlplane"), append([]string{"--data-dir", dir}, args...)...)
	program.Stdout, program.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := program.Run(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}
