package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/boards"
)

func doctorCommand() *cobra.Command {
	var dataDir, output string
	var record bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this board is, what it lacks, and which line of which file to change",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			machine := boards.This(dataDir)
			if record {
				return machine.Record(cmd.OutOrStdout())
			}
			report := machine.Doctor()
			write := report.WriteText
			switch output {
			case "":
			case "json":
				write = report.WriteJSON
			default:
				return fmt.Errorf("--output %s: the doctor writes text, or with -o json data", output)
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if report.Count(boards.Fail) > 0 {
				return errors.New("this board can't run pods as it is; see above")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "/var/lib/coracle", "edgelet's data folder, whose storage is looked at")
	cmd.Flags().BoolVar(&record, "record", false, "write out what was looked at, without serial numbers, to be kept as a test's board")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for the findings as data")
	return cmd
}
