package tunnel

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/state"
)

type desired map[string][]state.Object

func (d desired) Desired(kind string) ([]state.Object, error) {
	if kind == state.KindSecret && d[kind] == nil {
		return nil, fmt.Errorf("%w: Secret ns/s", state.ErrDamaged)
	}
	return d[kind], nil
}

func TestHeldIsAllOrNothing(t *testing.T) {
	hash := fleet.HashObject([]byte("k8s\x00pod"))
	object := func(kind, name string) []state.Object {
		return []state.Object{{Kind: kind, Namespace: "ns", Name: name, UID: "uid-" + name, Hash: hash.String(), Raw: []byte("k8s\x00pod")}}
	}
	d := desired{state.KindPod: object(state.KindPod, "p"), state.KindConfigMap: object(state.KindConfigMap, "c"), state.KindSecret: object(state.KindSecret, "s"),
		state.KindRuntimeClass: object(state.KindRuntimeClass, "r")}
	get := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		Held(d, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, fleet.HeldPath, nil))
		return w
	}
	var got string
	w := get()
	if err := fleet.ReadHeld(w.Body, func(o *fleet.Object) error {
		if string(o.GetHash()) != string(hash[:]) {
			t.Errorf("hash %x", o.GetHash())
		}
		got += o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName() + " " + o.GetUid() + "; "
		return nil
	}); err != nil || got != "Pod ns/p uid-p; ConfigMap ns/c uid-c; Secret ns/s uid-s; " {
		t.Errorf("%q, %v", got, err)
	}
	d[state.KindSecret] = nil
	if w := get(); w.Code != http.StatusInternalServerError || fleet.ReadHeld(w.Body, func(*fleet.Object) error { return nil }) == nil {
		t.Errorf("an object that can't be read: %d %s", w.Code, w.Body)
	}
}
