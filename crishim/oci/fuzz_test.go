package oci

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
)

// What containerd tells of versions, of an image, its configuration and its own, and
// its events.
func FuzzContainerdsWord(f *testing.F) {
	exit, err := proto.Marshal(&events.TaskExit{ContainerID: "a", ID: "b"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("/tasks/exit", exit)
	f.Add("/containers/create", []byte(`{"chainID":"sha256:`+strings.Repeat("0", 64)+`"}`))
	f.Add("v2.99999999999999999999", []byte(`{"chainID":"../../x","containerd":{"snapshotter":"native"}}`))
	f.Add("2.0", []byte(`{"rootfs":{"diff_ids":["sha256:`+strings.Repeat("0", 64)+`"]}}`))
	f.Fuzz(func(t *testing.T, text string, raw []byte) {
		for _, topic := range []string{text, "/tasks/start", "/tasks/exit", "/containers/create", "/containers/delete"} {
			parseEvent(topic, raw)
		}
		hasImageVolumes(text)
		if id, err := parseChainID(string(raw)); err == nil && !strings.HasPrefix(id, "sha") {
			t.Errorf("chain %q", id)
		}
		if diffs, err := parseDiffIDs(raw, 1); err == nil && (len(diffs) != 1 || diffs[0].Validate() != nil) {
			t.Errorf("layers %q", diffs)
		}
		if name, err := parseSnapshotter(string(raw)); err == nil && name == "" {
			t.Error("a snapshotter without a name")
		}
	})
}
