package rewrite_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
	"github.com/coracle-edge/coracle/wasmruntime/internal/rewrite"
)

func modules(t *testing.T) map[string][]byte {
	out := map[string][]byte{}
	files, _ := filepath.Glob("../../testdata/*.wasm")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := modcheck.Check(bytes.NewReader(b), int64(len(b)), modcheck.Limits{}); err == nil && filepath.Base(f) != "invalid.wasm" {
			out[filepath.Base(f)] = b
		}
	}
	if len(out) < 10 {
		t.Fatalf("only %d modules found", len(out))
	}
	return out
}

// What comes out must be admitted and valid, whatever goes in.
func TestRewrittenModulesAreValid(t *testing.T) {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer rt.Close(ctx)
	for name, m := range modules(t) {
		for how, f := range map[string]func([]byte) ([]byte, error){
			"remainders": rewrite.ReplaceRemainders,
			"tables":     func(b []byte) ([]byte, error) { return rewrite.CapTables(b, 1000) },
			"data":       rewrite.MergeData,
			"stub":       func(b []byte) ([]byte, error) { return rewrite.Stub(b, 1000) },
		} {
			out, err := f(bytes.Clone(m))
			if err != nil {
				t.Errorf("%s, %s: %v", name, how, err)
				continue
			}
			if _, err := modcheck.Check(bytes.NewReader(out), int64(len(out)), modcheck.Limits{}); err != nil {
				t.Errorf("%s, %s: %v", name, how, err)
			}
			if _, err := rt.CompileModule(ctx, out); err != nil {
				t.Errorf("%s, %s: %v", name, how, err)
			}
		}
	}
}

func exitCode(t *testing.T, module []byte) uint32 {
	ctx := context.Background()
	rt := wazero.NewRuntime(ctx)
	defer rt.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	_, err := rt.Instantiate(ctx, module)
	if exit, ok := err.(*sys.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		t.Errorf("run: %v", err)
	}
	return 0
}

// The replaced remainders are right, edge cases included, and none is left.
func TestReplacedRemaindersAreRight(t *testing.T) {
	m := modules(t)["remainder.wasm"]
	out, err := rewrite.ReplaceRemainders(bytes.Clone(m))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(out, m) {
		t.Fatal("nothing was replaced")
	}
	if code := exitCode(t, out); code != 0 {
		t.Errorf("%d remainders are wrong", code)
	}
	again, err := rewrite.ReplaceRemainders(bytes.Clone(out))
	if err != nil || !bytes.Equal(again, out) {
		t.Errorf("there was something left to replace (%v)", err)
	}
}

func TestCapTables(t *testing.T) {
	out, err := rewrite.CapTables(modules(t)["table-grow.wasm"], 5)
	if err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, out); code != 0 {
		t.Errorf("the table grew over its maximum")
	}
}

func TestStubKeepsNamesWhileTheyAreShort(t *testing.T) {
	m := modules(t)["trap.wasm"]
	long, err := rewrite.Stub(bytes.Clone(m), 1000)
	if err != nil || !strings.Contains(string(long), "deep") {
		t.Errorf("names were lost (%v)", err)
	}
	short, err := rewrite.Stub(bytes.Clone(m), 0)
	if err != nil || strings.Contains(string(short), "deep") {
		t.Errorf("names were kept (%v)", err)
	}
}
