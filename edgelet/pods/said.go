package pods

import (
	"maps"
	"slices"
	"time"
)

// What repeats within repeatFor is counted, and then told with how often it was so.
// A kubelet's recorder writes each repetition into one Event (client-go:
// tools/record/events_cache.go); here each is a write to the board's flash and
// something to send. Telling again before an Event's hour is over keeps the reason
// in sight for as long as nobody helps. maxSaid bounds the texts of one pod.
//
// What has another text each time, such as the ID of what could not be made, is from
// the maxSimilar-th on taken for one (client-go: defaultAggregateMaxEvents).
const (
	repeatFor  = 10 * time.Minute
	maxSaid    = 32
	maxSimilar = 10
)

type sayingKey struct{ container, reason, message string }

type saying struct {
	at    time.Time // when it was told, monotonic
	since uint32    // how often it was so since
}

// eventOnce tells what may be so again and again, of a container unless that is empty.
func (w *worker) eventOnce(container, eventType, reason, message string) {
	key, now, count := sayingKey{container, reason, message}, time.Now(), uint32(1)
	similar := 0
	for k, one := range w.said {
		if k != key && k.container == container && k.reason == reason && now.Sub(one.at) < repeatFor {
			similar++
		}
	}
	if _, known := w.said[key]; !known && similar >= maxSimilar {
		key.message, message = "", "(combined from similar events): "+message
	}
	if before, known := w.said[key]; known {
		if now.Sub(before.at) < repeatFor {
			before.since++
			w.said[key] = before
			return
		}
		count += before.since
	}
	if w.said == nil {
		w.said = map[sayingKey]saying{}
	}
	for len(w.said) >= maxSaid {
		var oldest sayingKey
		var at time.Time
		for k, one := range w.said {
			if at.IsZero() || one.at.Before(at) {
				oldest, at = k, one.at
			}
		}
		delete(w.said, oldest)
	}
	w.said[key] = saying{at: now}
	w.eventOften(container, eventType, reason, message, count)
}

// forgetSaid is for what is mended: when it is so again, that is news.
func (w *worker) forgetSaid(container string, reasons ...string) {
	maps.DeleteFunc(w.said, func(k sayingKey, _ saying) bool {
		return k.container == container && slices.Contains(reasons, k.reason)
	})
}
