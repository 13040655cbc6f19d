package linkcheck

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
)

var (
	full   = flag.Bool("full", false, "explore as deep as each scenario says, not only as deep as the short run")
	single = flag.String("scenario", "", "explore this one only")
	depth  = flag.Int("depth", 0, "explore to this depth, not the scenario's")
	limit  = flag.Uint("faults", 0, "with at most so many faults on one way")
)

// TestAllThatCanHappen explores every scenario and wants no invariant broken.
func TestAllThatCanHappen(t *testing.T) {
	var results []Result
	for _, s := range Scenarios() {
		if *single != "" && *single != s.Name {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			runs := []Options{{Depth: s.Short}}
			if *full {
				runs = []Options{{Depth: s.Wide}}
				if s.Deep > s.Wide {
					runs = append(runs, Options{Depth: s.Deep, Faults: s.Faults})
				}
			}
			if *depth != 0 {
				runs = []Options{{Depth: *depth, Faults: uint8(*limit)}}
			}
			for _, o := range runs {
				o.Workers = runtime.GOMAXPROCS(0)
				r, err := Explore(context.Background(), s, o)
				if err != nil {
					t.Fatal(err)
				}
				results = append(results, r)
				fmt.Fprintln(os.Stderr, "explored", r)
				t.Log(r.New)
				if r.Violation != nil {
					t.Error(r.Violation)
				}
			}
		})
	}
	fmt.Fprintln(os.Stderr, "explored", Table(results))
}

// TestLongWays: what is too deep to be explored is at least visited.
func TestLongWays(t *testing.T) {
	seeds := uint64(6)
	if *full {
		seeds = 200
	}
	for _, s := range Scenarios() {
		if *single != "" && *single != s.Name {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			for seed := range seeds {
				v, err := Walk(s, seed, 400)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if v != nil {
					t.Fatalf("seed %d: %v", seed, v)
				}
			}
		})
	}
}
