package examples

import _ "embed"

// HelloImage is the reference that hello/pod.yaml names.
const HelloImage = "localhost:5443/coracle/hello:v1"

var (
	// HelloModule is hello/hello.wasm, built from hello/hello.c.
	//go:embed hello/hello.wasm
	HelloModule []byte
	// HelloManifest is hello/pod.yaml.
	//go:embed hello/pod.yaml
	HelloManifest []byte
)
