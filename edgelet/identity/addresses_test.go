package identity

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

func TestLearnedAddressesAreKept(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	a.member(dir, 100, 200)
	load := func() *Identity {
		t.Helper()
		id, err := Load(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	id := load()
	urls := id.FleetURLs()
	learned := &fleet.Addresses{Mqtt: []string{"mqtts://b:1", "mqtts://a:1"}, Fleet: []string{"https://b:2"}, Api: []string{"https://b:3"}}
	if err := id.Learn(learned); err != nil {
		t.Fatal(err)
	}
	for _, id := range []*Identity{id, load()} {
		if !proto.Equal(id.Addresses(), learned) || id.FleetURLs()[0] != "https://b:2" || id.Certificate() == nil {
			t.Errorf("%v, fleet %v", id.Addresses(), id.FleetURLs())
		}
		// The join line's stay the last resort.
		if got := id.FleetURLs(); got[len(got)-1] != urls[len(urls)-1] {
			t.Errorf("%v, before %v", got, urls)
		}
	}
	path := filepath.Join(dir, "identity.json")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Learn(proto.CloneOf(learned)); err != nil {
		t.Error(err)
	}
	// What would strand the node isn't taken.
	bad := proto.CloneOf(learned)
	bad.Mqtt = nil
	if err := id.Learn(bad); !errors.Is(err, fleet.ErrMalformed) || !proto.Equal(id.Addresses(), learned) {
		t.Errorf("%v; %v", err, id.Addresses())
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was written again: %v", err)
	}
}
