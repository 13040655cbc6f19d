package fleet

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestUsageIsSmall(t *testing.T) {
	u := &Usage{UnixMilli: 1795738875000, WindowMilli: 10000, NanoCores: 1998000000, WorkingSet: 412 << 20}
	for range 10 {
		u.Pods = append(u.Pods, PodUsage{Namespace: "default", Name: "web-7f5d879d7-6664h", UID: "07acca9e-f239-41dd-a479-08fafd5f44fe",
			Containers: []ContainerUsage{{Name: "main", NanoCores: 179000000, WorkingSet: 12 << 20}}})
	}
	var b bytes.Buffer
	if err := WriteUsage(&b, u); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 1800 {
		t.Errorf("ten pods take %d bytes", b.Len())
	}
	got, err := ReadUsage(&b)
	if err != nil || !reflect.DeepEqual(got, u) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReadUsage(strings.NewReader(`{"t":1,"w":1,"p":[` + strings.Repeat(" ", MaxUsage))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too long: %v", err)
	}
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(`{"t":1,"w":1000,"c":5,"m":6,"p":[{"s":"ns","n":"p","u":"1","k":[{"n":"main","c":1,"m":2}]}]}`))
	f.Add([]byte(`{"t":-1,"w":0}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		u, err := ReadUsage(bytes.NewReader(raw))
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%v", err)
			}
			return
		}
		if u.WindowMilli <= 0 || u.UnixMilli < 0 {
			t.Fatalf("accepted %+v", u)
		}
	})
}
