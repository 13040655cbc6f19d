package standing

import (
	"log/slog"
	"testing"
)

type said string

func (s said) Setting(string) string               { return string(s) }
func (s said) PutSetting(name, value string) error { return nil }

// What the disk says that the cluster last said.
func FuzzSetting(f *testing.F) {
	f.Add(`{"state":"revoked","message":"m"}`)
	f.Add(`{"state":""}`)
	f.Add(`[]`)
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, text string) {
		if k := New(said(text), log, nil); k.Current().State == "" {
			t.Errorf("%q: no standing", text)
		}
	})
}
