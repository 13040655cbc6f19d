package state

import (
	"maps"
	"path/filepath"
	"testing"
	"time"
)

// Records that may be written later go with the next write of anything, and never over
// one that was said after them.
func TestClaimRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{FlushDelay: time.Hour})
	have := func(want map[string]string) {
		t.Helper()
		raw, err := s.ClaimRecords()
		got := map[string]string{}
		for k, v := range raw {
			got[k] = string(v)
		}
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	have(map[string]string{})
	before := s.Written().Commits
	s.PutClaimRecordsLater(map[string][]byte{"a": []byte("1"), "b": []byte("1")})
	have(map[string]string{})
	if err := s.PutClaimRecords(map[string][]byte{"a": []byte("2"), "c": []byte("1")}); err != nil {
		t.Fatal(err)
	}
	have(map[string]string{"a": "2", "b": "1", "c": "1"})
	if n := s.Written().Commits - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	s.PutClaimRecordsLater(map[string][]byte{"a": nil, "d": nil})
	s.PutClaimRecordsLater(map[string][]byte{"b": []byte("3")})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	have(map[string]string{"b": "3", "c": "1"})
}
