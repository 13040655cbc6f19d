package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestAddressesHash(t *testing.T) {
	a := &Addresses{Mqtt: []string{"mqtts://a:1", "mqtts://b:1"}, Fleet: []string{"https://a:2"}, Api: []string{"https://a:3"}}
	// The bytes are the contract's.
	if got := fmt.Sprintf("%x", a.Hash()); got != "5b34b527f6eb9842" {
		t.Errorf("hash %s", got)
	}
	for what, other := range map[string]*Addresses{
		"another order":          {Mqtt: []string{"mqtts://b:1", "mqtts://a:1"}, Fleet: a.Fleet, Api: a.Api},
		"one less":               {Mqtt: a.Mqtt[:1], Fleet: a.Fleet, Api: a.Api},
		"one in another list":    {Mqtt: a.Mqtt[:1], Fleet: []string{"mqtts://b:1", "https://a:2"}, Api: a.Api},
		"cut in another place":   {Mqtt: []string{"mqtts://a:1mqtts", "://b:1"}, Fleet: a.Fleet, Api: a.Api},
		"none":                   {},
		"what isn't said at all": nil,
	} {
		if string(other.Hash()) == string(a.Hash()) {
			t.Errorf("%s has the same hash", what)
		}
	}
}

func TestAddressesCheck(t *testing.T) {
	good := func() *Addresses {
		return &Addresses{Mqtt: []string{"mqtts://a:1", "tls://b:1", "ssl://c"}, Fleet: []string{"https://a:2"}, Api: []string{"https://[::1]:3"}}
	}
	if err := good().Check(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Addresses){
		"no broker":            func(a *Addresses) { a.Mqtt = nil },
		"no endpoint":          func(a *Addresses) { a.Fleet = nil },
		"no API":               func(a *Addresses) { a.Api = nil },
		"a broker in clear":    func(a *Addresses) { a.Mqtt = []string{"mqtt://a:1"} },
		"an endpoint in clear": func(a *Addresses) { a.Fleet = []string{"http://a:1"} },
		"no host":              func(a *Addresses) { a.Api = []string{"https://:1"} },
		"not an address":       func(a *Addresses) { a.Mqtt = append(a.Mqtt, "://") },
		"a long one":           func(a *Addresses) { a.Mqtt[0] = "mqtts://" + strings.Repeat("a", 300) },
		"too many":             func(a *Addresses) { a.Fleet = make([]string, 17) },
	} {
		a := good()
		change(a)
		if err := a.Check(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzAddressesCheck(f *testing.F) {
	f.Add("mqtts://a:1", "https://a", "https://[::1]:2")
	f.Fuzz(func(t *testing.T, mqtt, fleet, api string) {
		a := &Addresses{Mqtt: []string{mqtt}, Fleet: []string{fleet}, Api: []string{api}}
		if err := a.Check(); err == nil && (!strings.Contains(mqtt, "://") || !strings.HasPrefix(strings.ToLower(fleet), "https://") || len(api) > maxAddress) {
			t.Fatalf("%v", a)
		}
		_ = a.Hash()
	})
}
