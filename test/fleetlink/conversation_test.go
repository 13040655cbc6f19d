package fleetlink

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/broker/brokertest"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// conversation is what a node and a hub once said to each other, with what
// happened on either side, from a state file on. It is recorded once per version
// of the protocol and never again: today's node must still be able to have it
// with that hub, and today's hub with that node.
type conversation struct {
	state []byte // the node's state file before
	steps []step
}

// step is one line of a transcript: "up" and "down" with an envelope, "api" and
// "node" with something that was done there.
type step struct {
	kind, text string
	raw        []byte
}

const (
	firstConversation = "testdata/v1-conversation.txt"
	speaker           = "board-v1"
)

// Keys of whoever speaks in fixtures.
func fixtureKey(who byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{who}, ed25519.SeedSize))
}

func readConversation(t *testing.T) *conversation {
	t.Helper()
	raw, err := os.ReadFile(firstConversation)
	if err != nil {
		t.Fatal(err)
	}
	c := &conversation{}
	for line := range strings.Lines(string(raw)) {
		kind, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		s := step{kind: kind, text: text}
		switch kind {
		case "#", "":
			continue
		case "state":
			packed, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			r, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			if c.state, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
			continue
		case "up", "down":
			if s.raw, err = hex.DecodeString(text); err != nil {
				t.Fatal(err)
			}
		case "api", "node":
		default:
			t.Fatalf("%s: line %.40q", firstConversation, line)
		}
		c.steps = append(c.steps, s)
	}
	return c
}

func (c *conversation) write(t *testing.T) {
	t.Helper()
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	_, _ = z.Write(c.state)
	_ = z.Close()
	var out strings.Builder
	out.WriteString("# What a node and a hub of protocol 1 said. Not to be changed.\n")
	fmt.Fprintf(&out, "state %s\n", base64.StdEncoding.EncodeToString(packed.Bytes()))
	for _, s := range c.steps {
		if s.raw != nil {
			s.text = hex.EncodeToString(s.raw)
		}
		fmt.Fprintf(&out, "%s %s\n", s.kind, s.text)
	}
	if err := os.WriteFile(firstConversation, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fixtureCluster has the fixtures' keys, record and objects; nothing runs yet.
func fixtureCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, pki: brokertest.NewPKI(t), client: fake.NewClientset(), hubKey: fixtureKey('h'), trace: trace.NewRecorder(0), keys: map[string]fleethub.NodeKeys{}}
	lockNodes(c.client)
	lockPods(c.client)
	seal, err := fleet.SealKEM().NewPrivateKey(bytes.Repeat([]byte{'s'}, 32))
	if err != nil {
		t.Fatal(err)
	}
	c.keys[speaker] = fleethub.NodeKeys{Sign: fixtureKey('n').Public().(ed25519.PublicKey), Seal: seal.PublicKey().Bytes()}
	record := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fleethub.RecordName, Namespace: fleethub.Namespace}, Data: map[string][]byte{
		"incarnation": []byte(hex.EncodeToString([]byte("incarnation-0001"))), "epoch": []byte("6"), "hashKey": bytes.Repeat([]byte{'k'}, 32)}}
	if _, err := c.client.CoreV1().Secrets(fleethub.Namespace).Create(ctx, record, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// fixtureBoard is the conversation's node; it isn't started yet.
func (c *cluster) fixtureBoard(file []byte) *board {
	c.t.Helper()
	seal, err := fleet.SealKEM().NewPrivateKey(bytes.Repeat([]byte{'s'}, 32))
	if err != nil {
		c.t.Fatal(err)
	}
	b := &board{c: c, name: speaker, dir: c.t.TempDir(), key: fixtureKey('n'), seal: seal, tls: c.pki.Client(fleet.NodeUserPrefix + speaker), tunnels: make(chan *fleet.TunnelRequest, 8), cable: &cable{}, class: "wifi"}
	if err := os.WriteFile(filepath.Join(b.dir, "state.db"), file, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// newState is a state file that was opened once.
func newState(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := state.Open(path, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// api does what happened in the API; the objects are the same at any time.
func (c *cluster) api(what string) {
	c.t.Helper()
	then := metav1.NewTime(time.Unix(1_800_000_000, 0).UTC())
	core := c.client.CoreV1()
	conf := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf", Namespace: "default", UID: "uid-conf"}, Data: map[string]string{"a": "b"}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pull", Namespace: "default", UID: "uid-pull"}, Data: map[string][]byte{"p": []byte("tr0ub4dor&3")}}
	var err error
	switch what {
	case "objects":
		if _, err = core.ConfigMaps("default").Create(ctx, conf, metav1.CreateOptions{}); err == nil {
			_, err = core.Secrets("default").Create(ctx, secret, metav1.CreateOptions{})
		}
	case "pod one", "pod two":
		name := strings.TrimPrefix(what, "pod ")
		c.createPod(name, speaker, func(p *corev1.Pod) {
			p.CreationTimestamp = then
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		})
	case "change conf":
		conf.Data["a"] = "changed"
		_, err = core.ConfigMaps("default").Update(ctx, conf, metav1.UpdateOptions{})
	case "end one":
		patch := fmt.Sprintf(`{"metadata":{"deletionTimestamp":%q,"deletionGracePeriodSeconds":1}}`, then.Format(time.RFC3339))
		_, err = core.Pods("default").Patch(ctx, "one", "application/merge-patch+json", []byte(patch), metav1.PatchOptions{})
	case "tunnel":
		err = c.hub.RequestTunnel(ctx, speaker, "id1", "10250")
	default:
		c.t.Fatalf("no such thing to do in the API: %q", what)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// does what happened on the node.
func (b *board) does(what string) {
	t := b.c.t
	t.Helper()
	var err error
	switch what {
	case "start":
		b.start()
		t.Cleanup(b.stop)
	case "register":
		b.register()
	case "one runs":
		b.says("one", corev1.PodRunning)
	case "journal":
		err = b.store.Journal(state.Entry{Kind: state.EntryEvent, ObjectKind: "Pod", Namespace: "default", Name: "one", UID: "uid-one", Type: "Normal", Reason: "Started", Message: "Started container main"})
	case "one is gone":
		raw, _ := (&corev1.PodStatus{Phase: corev1.PodFailed}).Marshal()
		err = b.store.PutPodStatus("uid-one", state.PodReport{Namespace: "default", Name: "one", UID: "uid-one", Status: raw, Gone: true})
	case "stop":
		b.stop()
	default:
		t.Fatalf("no such thing to do on a node: %q", what)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// points are what a message says, each for itself: how they are gathered into
// messages is nobody's business. What a side may or may not say isn't among them.
func upPoints(u *fleet.Up) (points []string) {
	add := func(format string, args ...any) { points = append(points, fmt.Sprintf(format, args...)) }
	if u.GetHello() != nil {
		add("hello %x", u.GetHello().GetDigest())
	}
	if a := u.GetAck(); a != nil && a.GetStatus() != fleet.AckStatus_DUPLICATE {
		add("ack %d.%d %s %x", a.GetVersion().GetEpoch(), a.GetVersion().GetCounter(), a.GetStatus(), a.GetDigest())
	}
	for _, r := range u.GetReport().GetPods() {
		add("report %s %s %x gone=%v", r.GetUid(), fleet.StampFrom(r.GetStamp()), sha256.Sum256(r.GetStatus()), r.GetGone())
	}
	if r := u.GetReport().GetNode(); r != nil {
		add("report of the node %s", fleet.StampFrom(r.GetStamp()))
	}
	for _, e := range u.GetJournal().GetEntries() {
		add("journal %d.%d %s %s", e.GetBoot(), e.GetSeq(), e.GetReason(), e.GetMessage())
	}
	if b := u.GetBye(); b != nil {
		add("bye %s", b.GetReason())
	}
	return points
}

func downPoints(d *fleet.Down) (points []string) {
	add := func(format string, args ...any) { points = append(points, fmt.Sprintf(format, args...)) }
	if w := d.GetWelcome(); w != nil {
		add("welcome %d.%d protocol", w.GetVersion().GetEpoch(), w.GetVersion().GetCounter())
	}
	if o := d.GetOrder(); o != nil {
		add("order %d.%d to %x synced=%v", o.GetVersion().GetEpoch(), o.GetVersion().GetCounter(), o.GetDigest(), o.GetSynced())
		for _, obj := range o.GetUpserts() {
			add("upsert %s %s %x", obj.GetKind(), obj.GetUid(), obj.GetHash())
		}
		for _, uid := range o.GetRemoves() {
			add("remove %s", uid)
		}
	}
	for _, v := range d.GetReportAck().GetVerdicts() {
		add("verdict %s %s %s", v.GetUid(), fleet.StampFrom(v.GetStamp()), v.GetVerdict())
	}
	if j := d.GetJournalAck(); j != nil {
		add("journal up to %d.%d", j.GetBoot(), j.GetSeq())
	}
	if r := d.GetTunnel(); r != nil {
		add("tunnel %s %s", r.GetId(), r.GetPurpose())
	}
	return points
}
