package snapshots

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"time"
)

// Path is where Handler is served: GET lists ([Answer]), POST takes one ([Info]),
// GET of Path/NAME is the file.
const Path = "/coracle/v1/snapshots"

// Answer to a list.
type Answer struct {
	// Dir is the folder on the control plane's machine.
	Dir string `json:"dir"`
	// Interval of the schedule, empty if there is none.
	Interval string `json:"interval,omitempty"`
	// Failure is why the last attempt didn't bring one.
	Failure   string `json:"failure,omitempty"`
	Snapshots []Info `json:"snapshots"`
}

// Handler serves Path. Who may use it is for its caller to decide: a snapshot
// holds every Secret of the cluster.
func (k *Keeper) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, k.serveList)
	mux.HandleFunc("POST "+Path, k.serveTake)
	mux.HandleFunc("GET "+Path+"/{name}", k.serveFile)
	return mux
}

func (k *Keeper) serveList(w http.ResponseWriter, _ *http.Request) {
	list, err := k.List()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	a := Answer{Dir: k.c.Dir, Failure: k.Failure(), Snapshots: list}
	if k.c.Interval > 0 {
		a.Interval = k.c.Interval.String()
	}
	answer(w, a)
}

func (k *Keeper) serveTake(w http.ResponseWriter, r *http.Request) {
	info, err := k.Take(r.Context(), Requested)
	switch {
	case errors.Is(err, ErrNoSpace):
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		answer(w, info)
	}
}

func (k *Keeper) serveFile(w http.ResponseWriter, r *http.Request) {
	path, err := k.Path(r.PathValue("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		http.Error(w, "there is no snapshot "+r.PathValue("name")+" (any more)", http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The reader may be gone; it asks again.
	_ = json.NewEncoder(w).Encode(v)
}
