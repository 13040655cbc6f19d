package tunnel

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// heldKinds is what can be brought back into a cluster that has forgotten it.
var heldKinds = [...]string{state.KindPod, state.KindConfigMap, state.KindSecret}

// Desired is what the node was last ordered to have; [state.Store] is one.
type Desired interface {
	Desired(kind string) ([]state.Object, error)
}

// Held serves fleet.HeldPath. If one object can't be read there is no answer at
// all: nothing may be concluded from what is absent.
func Held(desired Desired, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var all []state.Object
		for _, kind := range heldKinds {
			objects, err := desired.Desired(kind)
			if err != nil {
				fail(w, http.StatusInternalServerError, fmt.Sprintf("this node can't read all that it was ordered: %v", err))
				return
			}
			all = append(all, objects...)
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		for _, o := range all {
			hash, err := hex.DecodeString(o.Hash)
			if err == nil {
				err = fleet.WriteHeld(w, &fleet.Object{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Uid: o.UID, Hash: hash, Raw: o.Raw})
			}
			if err != nil {
				logger.Info("held objects", "err", err)
				panic(http.ErrAbortHandler) // an end without the last chunk says that something is missing
			}
		}
	})
}
