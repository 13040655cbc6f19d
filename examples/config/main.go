// Config prints its configuration, from the environment and from the files of
// a ConfigMap volume, and prints it again whenever a file changes. It is built
// by `GOOS=wasip1 GOARCH=wasm go build`.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	dir := "/config"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "APP_") {
			fmt.Println("env", kv)
		}
	}
	var last []byte
	for {
		now, err := read(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "config:", err)
			os.Exit(1)
		}
		if !bytes.Equal(now, last) {
			os.Stdout.Write(now)
			last = now
		}
		time.Sleep(10 * time.Second)
	}
}

// read gives one line per file of the volume.
func read(dir string) ([]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue // the volume's own links
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "file %s = %s\n", e.Name(), strings.TrimSpace(string(b)))
	}
	return out.Bytes(), nil
}
