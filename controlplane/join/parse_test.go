package join

import (
	"errors"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

func FuzzParseRequests(f *testing.F) {
	f.Add([]byte(`{"token":"abcd.aaaaaaaaaaaaaaaa","node":"pi-1","signingKey":"AAAA","sealingKey":"AAAA","kem":32}`))
	f.Add([]byte(`{"node":"pi-1","signingKey":""}`))
	f.Add([]byte(`{"namespace":"a","serviceAccount":"b","pod":"c","podUID":"d","audience":"e","seconds":600}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if r, err := parseJoin(body); err != nil {
			if !errors.Is(err, enrollment.ErrBadRequest) {
				t.Fatalf("error without its sentinel: %v", err)
			}
		} else if enrollment.CheckNodeName(r.Node) != nil || len(r.SealingKey) != 32 {
			t.Fatalf("accepted %+v", r)
		}
		if r, err := parseRenew(body); err == nil && enrollment.CheckNodeName(r.Node) != nil {
			t.Fatalf("accepted %+v", r)
		}
		if r, err := parsePodTokenRequest(body); err == nil && (r.Pod == "" || r.PodUID == "" || r.Audience == "" || r.Seconds < 0) {
			t.Fatalf("accepted %+v", r)
		}
	})
}
