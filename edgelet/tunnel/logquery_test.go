package tunnel

import (
	"net/url"
	"testing"
	"time"
)

func FuzzLogQuery(f *testing.F) {
	f.Add("follow=true&tailLines=10&sinceSeconds=5&timestamps&stream=Stderr")
	f.Add("tail=all&sinceTime=2026-10-06T00:17:09.669794202Z&limitBytes=1")
	now := time.Unix(1e9, 0)
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, status, err := parseLogQuery(query, now)
		if err != nil {
			if status != 400 && status != 422 {
				t.Fatalf("status %d for %v", status, err)
			}
			return
		}
		if q.options.Tail != nil && *q.options.Tail < 0 || q.options.Limit != nil && *q.options.Limit < 1 || !q.stdout && !q.stderr {
			t.Fatalf("accepted %q: %+v", text, q)
		}
	})
}
