package join

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
)

func member(id string, alone bool) Member {
	return Member{ID: id, Alone: alone, Addresses: Addresses{API: []string{"https://" + id + ":1"}, MQTT: []string{"tls://" + id + ":2", "tls://common:2"}, Fleet: []string{"https://" + id + ":3"}}}
}

func TestControlPlanesArePublishedTogether(t *testing.T) {
	client := fake.NewClientset()
	read := func() map[string]string {
		t.Helper()
		m, err := client.CoreV1().ConfigMaps(EndpointNamespace).Get(t.Context(), EndpointMap, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return m.Data
	}
	publish := func(m Member) {
		t.Helper()
		if err := publishMember(t.Context(), client, m, "hash"); err != nil {
			t.Fatal(err)
		}
	}
	publish(member("b", false))
	publish(member("a", false))
	writes := len(client.Actions())
	publish(member("a", false))
	for _, action := range client.Actions()[writes:] {
		if action.GetVerb() != "get" {
			t.Errorf("the same is written again: %s", action.GetVerb())
		}
	}
	var urls []string
	if err := json.Unmarshal([]byte(read()["urls"]), &urls); err != nil || !slices.Equal(urls, []string{"https://a:3", "https://b:3"}) {
		t.Errorf("join lines say %v, %v", urls, err)
	}
	all := AllAddresses(read(), "b")
	if fmt.Sprint(all) != "{[https://b:1 https://a:1] [tls://b:2 tls://common:2 tls://a:2] [https://b:3 https://a:3]}" {
		t.Errorf("%v", all)
	}
	if all = AllAddresses(read(), "nobody"); !slices.Equal(all.Fleet, []string{"https://a:3", "https://b:3"}) {
		t.Errorf("%v", all)
	}
	// Keys that were not copied are found before they do harm.
	if err := publishMember(t.Context(), client, member("c", false), "other"); !errors.Is(err, ErrOtherRoot) || !strings.Contains(err.Error(), "--pki-dir") || read()["ca-hash"] != "hash" {
		t.Errorf("%v", err)
	}
	// One that is alone, with a new data folder or new keys, replaces its past.
	if err := publishMember(t.Context(), client, member("c", true), "other"); err != nil {
		t.Fatal(err)
	}
	if d := read(); len(d) != 3 || d["ca-hash"] != "other" || d["urls"] != `["https://c:3"]` {
		t.Errorf("%v", d)
	}
}

func FuzzAllAddresses(f *testing.F) {
	f.Add("member.a", `{"mqtt":["tls://a:1"]}`, "a")
	f.Add("member.", `{`, "")
	f.Add("urls", `[]`, "urls")
	f.Fuzz(func(t *testing.T, key, value, first string) {
		all := AllAddresses(map[string]string{key: value, memberPrefix + "x": `{"fleet":["https://x"]}`}, first)
		if !slices.Contains(all.Fleet, "https://x") && key != memberPrefix+"x" {
			t.Fatalf("%v", all)
		}
	})
}

func TestRootIsCheckedInEtcd(t *testing.T) {
	encode := func(data map[string]string) []byte {
		var raw bytes.Buffer
		m := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, Data: data}
		if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(m, &raw); err != nil {
			t.Fatal(err)
		}
		return raw.Bytes()
	}
	for what, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"the same":       {encode(map[string]string{"ca-hash": "hash"}), nil},
		"another":        {encode(map[string]string{"ca-hash": "other"}), ErrOtherRoot},
		"not said":       {encode(nil), nil},
		"not an object":  {[]byte("hello"), errors.ErrUnsupported},
		"another object": {encode(nil)[:8], errors.ErrUnsupported},
	} {
		err := CheckRoot(c.raw, "hash")
		if (err == nil) != (c.want == nil) || errors.Is(c.want, ErrOtherRoot) != errors.Is(err, ErrOtherRoot) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzCheckRoot(f *testing.F) {
	f.Add([]byte("k8s\x00\n\x0f\n\x02v1\x12\tConfigMap"))
	f.Fuzz(func(t *testing.T, raw []byte) { _ = CheckRoot(raw, "hash") })
}
