package main

import "github.com/spf13/cobra"

func wasmCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "wasm", Short: "Compile WebAssembly modules for boards"}
	cmd.AddCommand(wasmCompileCommands()...)
	return cmd
}
