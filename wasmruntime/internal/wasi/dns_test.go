package wasi

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func question(name string, t dnsmessage.Type) dnsmessage.Question {
	return dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: t, Class: dnsmessage.ClassINET}
}

func TestAnswerMustBeToTheQuestion(t *testing.T) {
	q := question("a.test.", dnsmessage.TypeA)
	good := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q},
		Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}},
	}
	for _, c := range []struct {
		name      string
		change    func(*dnsmessage.Message)
		want      errno
		truncated bool
	}{
		{"as it should be", func(*dnsmessage.Message) {}, ok, false},
		{"another number", func(m *dnsmessage.Message) { m.ID = 8 }, eAiAgain, false},
		{"a question", func(m *dnsmessage.Message) { m.Response = false }, eAiAgain, false},
		{"to another name", func(m *dnsmessage.Message) { m.Questions[0] = question("b.test.", dnsmessage.TypeA) }, eAiAgain, false},
		{"of another type", func(m *dnsmessage.Message) { m.Questions[0] = question("a.test.", dnsmessage.TypeAAAA) }, eAiAgain, false},
		{"cut off", func(m *dnsmessage.Message) { m.Truncated = true }, eAiAgain, true},
		{"no such name", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }, eAiNoname, false},
		{"a failure", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeServerFailure }, eAiAgain, false},
		{"nothing of that type", func(m *dnsmessage.Message) { m.Answers = nil }, eAiNoname, false},
		{"of somebody else", func(m *dnsmessage.Message) { m.Answers[0].Header.Name = dnsmessage.MustNewName("b.test.") }, eAiNoname, false},
	} {
		m := good
		m.Questions, m.Answers = slices.Clone(good.Questions), slices.Clone(good.Answers)
		c.change(&m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		addrs, truncated, e := readAnswer(b, 7, q)
		if e != c.want || truncated != c.truncated || (e == ok) != (len(addrs) == 1) {
			t.Errorf("%s: %v, truncated %v, errno %d, want %d", c.name, addrs, truncated, e, c.want)
		}
	}
}

func TestCandidates(t *testing.T) {
	o := Outbound{Searches: []string{"ns.svc.cluster.local", "cluster.local."}, Ndots: 2}
	for name, want := range map[string][]string{
		"a":      {"a.ns.svc.cluster.local.", "a.cluster.local.", "a."},
		"a.b":    {"a.b.ns.svc.cluster.local.", "a.b.cluster.local.", "a.b."},
		"a.b.c":  {"a.b.c.", "a.b.c.ns.svc.cluster.local.", "a.b.c.cluster.local."},
		"a.b.c.": {"a.b.c."},
	} {
		if got := o.candidates(name); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// Whatever a server sends is read without harm, and gives no address that
// isn't of the type that was asked for.
func FuzzReadAnswer(f *testing.F) {
	q := question("a.test.", dnsmessage.TypeA)
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q},
		Answers: []dnsmessage.Resource{
			{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("b.test.")}},
			{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("b.test."), Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}},
		},
	}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add([]byte("\x00\x07\x80\x00\x00\x01\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, _, e := readAnswer(b, 7, q)
		if (e == ok) != (len(addrs) > 0) || len(addrs) > mostAnswers || slices.ContainsFunc(addrs, netip.Addr.Is6) {
			t.Errorf("%v, errno %d", addrs, e)
		}
	})
}
