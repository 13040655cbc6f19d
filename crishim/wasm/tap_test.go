package wasm

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// A reader that is slow holds the stream back, one that takes nothing is cut off,
// and others get everything all the same.
func TestTapBoundsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts taps
		slow, stuck, quick := ts.add(), ts.add(), ts.add()
		var got bytes.Buffer
		quickDone := make(chan error, 1)
		go func() { quickDone <- quick.copyTo(&got, nil) }()
		slowDone := make(chan error, 1)
		go func() { slowDone <- slow.copyTo(dawdler{}, nil) }()
		ending := make(chan struct{})
		piece := bytes.Repeat([]byte("x"), 64<<10)
		began := time.Now()
		for range 100 {
			ts.put(piece)
			ts.awaitRoom(ending)
			for _, tp := range []*tap{slow, stuck, quick} {
				if n, over := tp.behind(); !over && n >= tapHigh {
					t.Fatalf("%d bytes wait", n)
				}
			}
		}
		if d := time.Since(began); d < tapPatience {
			t.Errorf("nobody was waited for: %v", d)
		}
		ts.close()
		if err := <-quickDone; err != nil || got.Len() != 100*len(piece) {
			t.Errorf("the quick one has %d bytes, %v", got.Len(), err)
		}
		if err := <-slowDone; err != nil {
			t.Errorf("the slow one: %v", err)
		}
		if err := stuck.copyTo(io.Discard, nil); !errors.Is(err, errTapSlow) {
			t.Errorf("the stuck one: %v", err)
		}
		if err := ts.add().copyTo(io.Discard, nil); err != nil {
			t.Errorf("after the end: %v", err)
		}
	})
}

// dawdler takes a second for each piece.
type dawdler struct{}

func (dawdler) Write(p []byte) (int, error) {
	time.Sleep(time.Second)
	return len(p), nil
}

func TestTapThatLeavesHoldsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts taps
		leaves := ts.add()
		ts.put(make([]byte, 2*tapHigh))
		go func() {
			time.Sleep(time.Second)
			ts.remove(leaves)
		}()
		began := time.Now()
		ts.awaitRoom(nil)
		if d := time.Since(began); d != time.Second {
			t.Errorf("waited %v", d)
		}
		ts.add()
		ts.put(make([]byte, 2*tapHigh))
		ending := make(chan struct{})
		close(ending)
		began = time.Now()
		ts.awaitRoom(ending)
		if d := time.Since(began); d != 0 {
			t.Errorf("at the end: waited %v", d)
		}
	})
}
