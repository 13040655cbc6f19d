package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// wasmCompileCommands are those of `coracle wasm` that make code for other machines.
func wasmCompileCommands() []*cobra.Command {
	return []*cobra.Command{wasmCompileCommand(), wasmKeygenCommand()}
}

func wasmCompileCommand() *cobra.Command {
	var p wasmruntime.Precompile
	var arch, cpu string
	cmd := &cobra.Command{
		Use:   "compile --key KEY.pem FILE.wasm -o OUT" + wasmruntime.ArtifactSuffix,
		Short: "Compile a module for boards, and sign it",
		Long: `Compiles a module to native code, for boards that take minutes for it, and signs
the result. A board takes it from the folder of its setting --wasm-artifacts when a
key in its folder --wasm-trusted-keys has signed it and the engine's version and the
processor's features are its own; otherwise it compiles the module by itself and says
in its log why.

The engine makes code only for the machine that it runs on, so the runner for --arch
runs here, for another architecture by an emulator (package qemu-user-static). Of the
processor the emulator shows what --cpu says: cortex-a53 fits a Raspberry Pi 3 and 4,
max newer ones that have atomics (Pi 5).`,
		Example: `  coracle wasm keygen builder
  coracle wasm compile --arch arm64 --key builder.key.pem app.wasm -o app.coracle-wasm`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Module = args[0]
			if p.Key == "" {
				return errors.New("--key: which key signs? `coracle wasm keygen` makes one")
			}
			if p.Out == "" {
				p.Out = strings.TrimSuffix(args[0], ".wasm") + wasmruntime.ArtifactSuffix
			}
			if !strings.HasSuffix(p.Out, wasmruntime.ArtifactSuffix) {
				return fmt.Errorf("-o %s: boards look at files that end in %s", p.Out, wasmruntime.ArtifactSuffix)
			}
			if err := findRunner(&p, arch, cpu); err != nil {
				return err
			}
			engine, err := p.Run(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s (for %s)\n", p.Out, engine)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&arch, "arch", runtime.GOARCH, "architecture of the boards: amd64 or arm64; others have no compiler")
	f.StringVar(&cpu, "cpu", "", "processor of the boards, for the emulator (default: cortex-a53 for arm64)")
	f.StringVar(&p.Key, "key", "", "private key to sign with, Ed25519, PEM")
	f.StringVarP(&p.Out, "out", "o", "", "file to write (default: FILE"+wasmruntime.ArtifactSuffix+")")
	f.StringVar(&p.RunnerPath, "runner", "", "wasmrunner for that architecture (default: beside this program, or in linux-ARCH beside it)")
	return cmd
}

// findRunner completes what is compiled with: the runner, and its emulator.
func findRunner(p *wasmruntime.Precompile, arch, cpu string) error {
	emulators := map[string][2]string{"arm64": {"qemu-aarch64-static", "cortex-a53"}, "amd64": {"qemu-x86_64-static", "max"}}
	e, known := emulators[arch]
	if !known {
		return fmt.Errorf("--arch %s: there is a compiler for amd64 and arm64 only; other boards interpret", arch)
	}
	if p.RunnerPath == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		beside := filepath.Dir(exe)
		p.RunnerPath = filepath.Join(beside, "linux-"+arch, "wasmrunner")
		if _, err := os.Stat(p.RunnerPath); errors.Is(err, fs.ErrNotExist) && arch == runtime.GOARCH {
			p.RunnerPath = filepath.Join(beside, "wasmrunner")
		}
		if _, err := os.Stat(p.RunnerPath); err != nil {
			return fmt.Errorf("no wasmrunner for %s: %w (`make boards` builds it; --runner names another place)", arch, err)
		}
	}
	if arch == runtime.GOARCH && cpu == "" {
		return nil
	}
	if cpu == "" {
		cpu = e[1]
	}
	p.Emulator = []string{e[0], "-cpu", cpu}
	return nil
}

func wasmKeygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen NAME",
		Short: "Make a key to sign compiled modules with",
		Long: `Makes NAME.key.pem, which signs and stays on the build machine, and NAME.pem, which
goes into each board's folder of trusted keys. They are Ed25519 keys as those of
openssl genpkey -algorithm ed25519.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			private, public, err := wasmruntime.GenerateKey()
			if err != nil {
				return err
			}
			if err := writeNew(args[0]+".key.pem", private, 0o600); err != nil {
				return err
			}
			if err := writeNew(args[0]+".pem", public, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s.key.pem signs; %s.pem is for boards to trust\n", args[0], args[0])
			return nil
		},
	}
}

// writeNew never replaces a file: it may be the only copy of a key.
func writeNew(file string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
