package runner

import (
	"encoding/json"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"golang.org/x/sys/cpu"

	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

// hasCompiler is true where wazero makes native code. The build tag interpreter
// leaves it out, to measure and to test what boards without one have.
const hasCompiler = !onlyInterpreter && (runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64")

// features are what guests may use: WebAssembly 2.0. Exceptions and threads
// stay off.
const features = api.CoreFeaturesV2

// engine names what the code in the cache depends on.
func engine() cache.Engine {
	e := cache.Engine{Name: "interpreter", Version: wazeroVersion(), Arch: runtime.GOARCH, Format: cache.Format}
	if hasCompiler {
		e.Name, e.CPU = "compiler", cpuFeatures()
	}
	return e
}

func wazeroVersion() string {
	const path = "github.com/tetratelabs/wazero"
	if info, found := debug.ReadBuildInfo(); found {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
}

// cpuFeatures are those that wazero's compilers look at.
func cpuFeatures() string {
	var have []string
	for _, f := range []struct {
		name string
		is   bool
	}{
		{"sse3", cpu.X86.HasSSE3}, {"ssse3", cpu.X86.HasSSSE3}, {"sse41", cpu.X86.HasSSE41},
		{"sse42", cpu.X86.HasSSE42}, {"popcnt", cpu.X86.HasPOPCNT}, {"bmi1", cpu.X86.HasBMI1},
		{"bmi2", cpu.X86.HasBMI2}, {"avx", cpu.X86.HasAVX}, {"avx2", cpu.X86.HasAVX2},
		{"atomics", cpu.ARM64.HasATOMICS},
	} {
		if f.is {
			have = append(have, f.name)
		}
	}
	return strings.Join(have, ",")
}

// config is the engine's; it must be the same for compiling and running.
// How large a guest may become is its allocator's to say.
func config() wazero.RuntimeConfig {
	c := wazero.NewRuntimeConfigInterpreter()
	if hasCompiler {
		c = wazero.NewRuntimeConfigCompiler()
	}
	return c.WithCoreFeatures(features).WithDebugInfoEnabled(false).WithMemoryLimitPages(65536)
}

// infoMain prints the engine, which the starter needs for the cache's keys.
func infoMain() int {
	if err := json.NewEncoder(os.Stdout).Encode(engine()); err != nil {
		return 1
	}
	return 0
}
