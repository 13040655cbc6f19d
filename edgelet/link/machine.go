package link

import (
	"maps"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Times of the protocol. Nothing is urgent here: they only repair what a broker
// has lost.
const (
	helloRetry    = 2 * time.Second // then doubled
	helloRetryMax = time.Minute
	resendAfter   = 20 * time.Second // then doubled
	resendMax     = 5 * time.Minute
	rebirthEvery  = 5 * time.Second // then doubled, up to helloRetryMax
	maxRebirths   = 4
	doubtAfter    = 5 * time.Minute // of an earlier hub asking while the later one is silent
	maxFlight     = 128             // reports under way
	deposedAfter  = 3               // Hellos that only a deposed hub answers
	maxUnanswered = 3               // sendings of a report or journal, then the session begins anew
)

// Phase of a session.
type Phase int

const (
	Offline  Phase = iota // no connection
	Greeting              // Hello is sent
	Live                  // Welcome came
)

func (p Phase) String() string { return [...]string{"offline", "greeting", "live"}[p] }

// Output is something that the shell has to do.
type Output interface{ output() }

type (
	// SendHello with Machine.Session as its session.
	SendHello struct{}
	// SendAck answers an order.
	SendAck struct{ Ack *fleet.Ack }
	// SendReports in one message; an empty UID is the node's own.
	SendReports struct{ UIDs []string }
	// SendJournal from what comes after (Boot, Seq), then call JournalSent.
	SendJournal struct{ Boot, Seq uint64 }
	// Fetch these objects by hash, then call Fetched.
	Fetch struct{ Objects []*fleet.Object }
	// StoreOrder durably, then call Stored.
	StoreOrder struct {
		Version fleet.OrderVersion
		Upserts []*fleet.Object
		Removes []string
		More    bool // pods that should be here may be missing after it
	}
	// ReleaseReport was answered for; an empty UID is the node's own.
	ReleaseReport struct {
		UID     string
		Stamp   fleet.StampID
		Verdict fleet.Verdict
		Message string
	}
	// ReleaseJournal up to and including this.
	ReleaseJournal struct{ Boot, Seq uint64 }
	// RepeatReports even if they were answered for, then call Outbox.
	RepeatReports struct {
		UIDs      []string
		All, Node bool
	}
	// OpenTunnel that was asked for.
	OpenTunnel struct{ Request *fleet.TunnelRequest }
	// Use what the hub says about the link, then call Outbox. Unless Told follows,
	// the node is in good standing.
	Use struct{ Welcome *fleet.Welcome }
	// Told is how the cluster regards this node. If Standing.Refuses, the session is
	// over and none may begin on this connection.
	Told struct{ Standing *fleet.Standing }
	// Renew the certificate within Jitter if the node trusts other roots.
	Renew struct{ Trust *fleet.Trust }
	// AnswerProbe with a message that has this grant.
	AnswerProbe struct{ Grant fleet.GrantID }
	// Refused is a message that wasn't obeyed, for the log.
	Refused struct{ Reason string }
)

func (SendHello) output()      {}
func (SendAck) output()        {}
func (SendReports) output()    {}
func (SendJournal) output()    {}
func (Fetch) output()          {}
func (StoreOrder) output()     {}
func (ReleaseReport) output()  {}
func (ReleaseJournal) output() {}
func (RepeatReports) output()  {}
func (OpenTunnel) output()     {}
func (Use) output()            {}
func (Told) output()           {}
func (Renew) output()          {}
func (AnswerProbe) output()    {}
func (Refused) output()        {}

type flight struct {
	stamp fleet.StampID
	due   time.Duration
	tries int
}

// order that is being fetched or stored.
type order struct {
	version  fleet.OrderVersion
	decision Decision
	fetching bool
}

// Machine is one node's side of the protocol. Its methods are its transitions:
// they look at no clock and do no I/O; now is monotonic time since any fixed
// moment. Not safe for concurrent use.
type Machine struct {
	session fleet.SessionID
	bootID  string // of this start of the agent, as its Hello says
	phase   Phase
	grant   fleet.GrantID
	upSeq   uint64
	downSeq uint64
	said    fleet.OrderVersion // in the session's Hello

	helloDue   time.Duration // when to say Hello (again); 0 is never
	helloTries int
	rebirthOK  time.Duration // a Rebirth before this is ignored
	rebirths   int           // obeyed shortly after one another, at most maxRebirths
	doubt      time.Duration // from then on a Rebirth of an earlier hub is obeyed; 0: none asked

	version fleet.OrderVersion // durable
	set     fleet.Set          // durable; never changed in place
	order   *order

	flights map[string]flight
	// Journal: up to where it was sent, and when to send again.
	journalBoot, journalSeq uint64
	journalDue              time.Duration
	journalTries            int
}

// NewMachine starts with what state has.
func NewMachine(store string, boot uint64, version fleet.OrderVersion, set fleet.Set) *Machine {
	return &Machine{session: fleet.SessionID{Store: store, Boot: boot}, version: version, set: set, flights: map[string]flight{}}
}

// Clone copies the machine's state.
func (m *Machine) Clone() *Machine {
	c := *m
	c.flights = maps.Clone(m.flights)
	if m.order != nil {
		o := *m.order
		c.order = &o
	}
	return &c
}

// Booted says what the Hellos of this start of the agent say as boot id.
func (m *Machine) Booted(id []byte) { m.bootID = string(id) }

// Session, Phase, Version and Set of the machine.
func (m *Machine) Session() fleet.SessionID    { return m.session }
func (m *Machine) Phase() Phase                { return m.phase }
func (m *Machine) Version() fleet.OrderVersion { return m.version }
func (m *Machine) Set() fleet.Set              { return m.set }

// NextConn is the session whose will goes with the next connection.
func (m *Machine) NextConn() fleet.SessionID {
	return fleet.SessionID{Store: m.session.Store, Boot: m.session.Boot, Conn: m.session.Conn + 1}
}

// Header begins a message of this session.
func (m *Machine) Header() *fleet.Up {
	m.upSeq++
	return &fleet.Up{Session: m.session.Proto(), Seq: m.upSeq, Grant: m.grant.Proto()}
}

// Connected begins a session on a new connection.
func (m *Machine) Connected(now time.Duration) []Output {
	m.session = m.NextConn()
	m.helloTries = 0
	return m.greet(now)
}

// Disconnected ends it. What was under way is forgotten, not lost: it stays in
// the outbox. So is an order whose objects were being fetched, because fetching
// ends with the connection; the hub gives it again.
func (m *Machine) Disconnected() {
	if m.order != nil && m.order.fetching {
		m.order = nil
	}
	m.phase = Offline
	m.helloDue = 0
	m.grant = fleet.GrantID{}
	clear(m.flights)
	m.forgetJournal()
}

// greet opens the connection's next session.
func (m *Machine) greet(now time.Duration) []Output {
	m.session.Hello++
	m.phase = Greeting
	m.grant = fleet.GrantID{}
	m.upSeq, m.downSeq = 0, 0
	m.said = m.version
	clear(m.flights)
	m.forgetJournal()
	m.helloDue = now + backoff(helloRetry, helloRetryMax, m.helloTries)
	m.helloTries++
	return []Output{SendHello{}}
}

// Tick does what is due; see Deadline.
func (m *Machine) Tick(now time.Duration) []Output {
	if m.phase != Offline && m.helloDue != 0 && now >= m.helloDue {
		return m.greet(now)
	}
	return nil
}

// Deadline is when Tick and Outbox have to be called next; false is never.
func (m *Machine) Deadline() (time.Duration, bool) {
	var at time.Duration
	earliest := func(t time.Duration) {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	if m.phase == Offline {
		return 0, false
	}
	earliest(m.helloDue)
	if m.phase == Live {
		for _, f := range m.flights {
			earliest(f.due)
		}
		earliest(m.journalDue)
	}
	return at, at != 0
}

// Down takes a message whose signature was found good. unix is a time in seconds
// that has surely passed; random is in [0,1).
func (m *Machine) Down(now time.Duration, unix int64, random float64, d *fleet.Down) []Output {
	if m.phase == Offline {
		return []Output{Refused{"no connection"}}
	}
	if d.GetSession() == nil && d.GetRebirth() != nil {
		return m.rebirth(now, random, d.GetRebirth())
	}
	if fleet.SessionFrom(d.GetSession()) != m.session {
		return []Output{Refused{"of another session"}}
	}
	// Both answer this very Hello: the session never repeats, so neither can be a recording.
	if s := d.GetStanding(); s.Refuses() {
		return m.dismissed(s)
	}
	if p := d.GetProbe(); p != nil {
		return m.probed(p, fleet.GrantFrom(d.GetGrant()))
	}
	var out []Output
	grant := fleet.GrantFrom(d.GetGrant())
	if w := d.GetWelcome(); w != nil && grant != m.grant {
		if reason := m.unwelcome(w, grant); reason != "" {
			return []Output{Refused{reason}}
		}
		m.phase, m.grant, m.downSeq = Live, grant, 0
		m.helloDue, m.helloTries = 0, 0
		// What is under way to another hub is nothing to this one.
		clear(m.flights)
		m.forgetJournal()
		out = append(out, Use{w})
		if m.version != m.said {
			// An order of the hub before this one came between.
			out = append(out, SendAck{m.ack(m.version, Decision{Status: fleet.AckStatus_DUPLICATE})})
		}
	}
	if d.GetSeq() <= m.downSeq {
		return []Output{Refused{"seen before"}}
	}
	if m.phase != Live || grant != m.grant {
		return []Output{Refused{"of another hub, or before its Welcome"}}
	}
	m.downSeq = d.GetSeq()
	m.doubt = 0
	if s := d.GetStanding(); s != nil {
		out = append(out, Told{s})
	}
	if a := d.GetAdopt(); a != nil {
		out = append(out, m.adopt(a)...)
	}
	if o := d.GetOrder(); o != nil {
		out = append(out, m.take(unix, o)...)
	}
	for _, v := range d.GetReportAck().GetVerdicts() {
		stamp := fleet.StampFrom(v.GetStamp())
		if f, ok := m.flights[v.GetUid()]; ok && f.stamp == stamp {
			delete(m.flights, v.GetUid())
		}
		out = append(out, ReleaseReport{v.GetUid(), stamp, v.GetVerdict(), v.GetMessage()})
	}
	if j := d.GetJournalAck(); j != nil {
		m.forgetJournal()
		out = append(out, ReleaseJournal{j.GetBoot(), j.GetSeq()})
	}
	if t := d.GetTrust(); t != nil {
		out = append(out, Renew{t})
	}
	if t := d.GetTunnel(); t != nil {
		out = append(out, OpenTunnel{t})
	}
	if r := d.GetResend(); r != nil {
		// What is under way was written before the hub asked.
		for _, uid := range r.GetUids() {
			delete(m.flights, uid)
		}
		if r.GetNode() {
			delete(m.flights, "")
		}
		if r.GetAll() {
			clear(m.flights)
		}
		out = append(out, RepeatReports{r.GetUids(), r.GetAll(), r.GetNode()})
	}
	return out
}

// dismissed ends the session: nothing is asked for any more on this connection.
func (m *Machine) dismissed(s *fleet.Standing) []Output {
	m.Disconnected()
	return []Output{Told{s}}
}

// probed: another board may have said the same session, so the start of the agent
// must be ours, too.
func (m *Machine) probed(p *fleet.Probe, grant fleet.GrantID) []Output {
	if m.bootID == "" || string(p.GetBootId()) != m.bootID {
		return []Output{Refused{"a probe for another board with this node's identity"}}
	}
	return []Output{AnswerProbe{grant}}
}

// unwelcome says why not to follow the hub that sent this Welcome. A hub of an
// earlier epoch was deposed, or its etcd was restored: it is followed only if no
// other answers, and left for one that does. What it orders is refused anyway.
func (m *Machine) unwelcome(w *fleet.Welcome, grant fleet.GrantID) string {
	v := fleet.VersionFrom(w.GetVersion())
	switch {
	case v.Epoch != grant.Epoch:
		return "a Welcome that contradicts itself"
	case m.phase == Live && grant.Epoch <= m.grant.Epoch:
		return "a second Welcome"
	case m.phase == Greeting && v.Incarnation == m.version.Incarnation && v.Epoch < m.version.Epoch && m.helloTries < deposedAfter:
		return "a hub that was deposed"
	}
	return ""
}

func (m *Machine) rebirth(now time.Duration, random float64, r *fleet.Rebirth) []Output {
	v := fleet.VersionFrom(r.GetVersion())
	switch {
	case now < m.rebirthOK:
		return []Output{Refused{"too many rebirths"}}
	case v.Incarnation == m.version.Incarnation && v.Epoch < m.version.Epoch && !m.doubts(now):
		return []Output{Refused{"rebirth by a hub that was deposed"}}
	case m.phase == Greeting && m.helloTries <= 1:
		return nil // a Hello is under way
	}
	// Where answers take longer than rebirthEvery, because five thousand nodes came
	// at once, one that began a session with each question would never have one.
	if now > m.rebirthOK+helloRetryMax {
		m.rebirths = 0
	}
	m.rebirthOK = now + backoff(rebirthEvery, helloRetryMax, m.rebirths)
	m.rebirths = min(m.rebirths+1, maxRebirths)
	m.helloTries, m.doubt = 0, 0
	m.helloDue = now + max(time.Duration(random*float64(r.GetJitter()))*time.Millisecond, time.Nanosecond)
	return m.Tick(now)
}

// doubts says whether a hub of an earlier epoch has asked for so long, and the
// one of this session said nothing, that its etcd may have been restored and the
// later hub be of a past that is lost.
func (m *Machine) doubts(now time.Duration) bool {
	if m.doubt == 0 {
		m.doubt = now + doubtAfter
	}
	return now >= m.doubt
}

// adopt moves the node into another incarnation, with everything it has.
func (m *Machine) adopt(a *fleet.Adopt) []Output {
	to := fleet.VersionFrom(a.GetTo())
	if m.order != nil || to.Incarnation == "" || string(a.GetFrom()) != m.version.Incarnation {
		return []Output{Refused{"adoption from another incarnation than this node's"}}
	}
	m.order = &order{version: to, decision: Decision{Status: fleet.AckStatus_APPLIED, Result: m.set}}
	return []Output{StoreOrder{Version: to, More: true}}
}

func (m *Machine) take(unix int64, o *fleet.Order) []Output {
	if m.order != nil {
		return []Output{Refused{"an order is being carried out"}} // the hub sends it again
	}
	d := Decide(m.version, m.set, o, unix)
	version := fleet.VersionFrom(o.GetVersion())
	if d.Status != fleet.AckStatus_APPLIED {
		return []Output{SendAck{m.ack(version, d)}}
	}
	m.order = &order{version: version, decision: d}
	var fetch []*fleet.Object
	for _, obj := range d.Upserts {
		if obj.GetSize() > 0 {
			fetch = append(fetch, obj)
		}
	}
	if len(fetch) > 0 {
		m.order.fetching = true
		return []Output{Fetch{fetch}}
	}
	return []Output{StoreOrder{version, d.Upserts, d.Removes, d.More}}
}

// Fetched says what came of Fetch: complete objects by UID, and why others
// couldn't be had.
func (m *Machine) Fetched(got map[string]*fleet.Object, failed map[string]string) []Output {
	if m.order == nil || !m.order.fetching {
		return nil // of a connection that ended
	}
	o := m.order
	o.fetching = false
	if len(failed) > 0 {
		m.order = nil
		ack := m.ack(o.version, Decision{Status: fleet.AckStatus_FAILED})
		ack.Failed = slices.Sorted(maps.Keys(failed))
		ack.Message = "large object " + ack.Failed[0] + ": " + failed[ack.Failed[0]]
		return []Output{SendAck{ack}}
	}
	upserts := slices.Clone(o.decision.Upserts)
	for i, obj := range upserts {
		if full, ok := got[obj.GetUid()]; ok {
			upserts[i] = full
		}
	}
	return []Output{StoreOrder{o.version, upserts, o.decision.Removes, o.decision.More}}
}

// Stored says what came of StoreOrder.
func (m *Machine) Stored(err error) []Output {
	if m.order == nil {
		return nil
	}
	o := m.order
	m.order = nil
	if err != nil {
		return []Output{SendAck{m.ack(o.version, Decision{Status: fleet.AckStatus_FAILED, Message: err.Error()})}}
	}
	m.version, m.set = o.version, o.decision.Result
	if m.phase == Offline {
		return nil // the next Hello says it
	}
	return []Output{SendAck{m.ack(o.version, o.decision)}}
}

func (m *Machine) ack(version fleet.OrderVersion, d Decision) *fleet.Ack {
	digest := m.set.Digest()
	return &fleet.Ack{Version: version.Proto(), Status: d.Status, Current: m.version.Proto(), Digest: digest[:], Want: d.Want, Message: d.Message}
}

// Ref is a report in the outbox.
type Ref struct {
	UID   string
	Stamp fleet.StampID
	Size  int // bytes
}

// Outbox says which reports are not answered for, oldest first, and whether there
// is more journal than was sent. Call it when that changes and at Deadline.
func (m *Machine) Outbox(now time.Duration, refs []Ref, journal bool) []Output {
	if m.phase != Live {
		return nil
	}
	waiting := make(map[string]bool, len(refs))
	for _, r := range refs {
		waiting[r.UID] = true
	}
	for uid := range m.flights {
		if !waiting[uid] {
			delete(m.flights, uid)
		}
	}
	var out []Output
	var batch []string
	size := 0
	for _, r := range refs {
		f, under := m.flights[r.UID]
		same := under && f.stamp == r.Stamp
		if same && now < f.due || !under && len(m.flights) >= maxFlight {
			continue
		}
		if !same {
			f = flight{stamp: r.Stamp}
		}
		if f.tries >= maxUnanswered {
			// The hub answers everything: it must have lost this session.
			m.helloTries = 0
			return m.greet(now)
		}
		f.due = now + backoff(resendAfter, resendMax, f.tries)
		f.tries++
		m.flights[r.UID] = f
		if size+r.Size > fleet.MaxReportBytes && len(batch) > 0 {
			out = append(out, SendReports{batch})
			batch, size = nil, 0
		}
		batch = append(batch, r.UID)
		size += r.Size
	}
	if len(batch) > 0 {
		out = append(out, SendReports{batch})
	}
	switch {
	case m.journalDue != 0 && now >= m.journalDue: // lost: from the start
		tries := m.journalTries
		if tries >= maxUnanswered {
			m.helloTries = 0
			return m.greet(now)
		}
		m.forgetJournal()
		m.journalTries = tries
		out = append(out, SendJournal{})
	case m.journalDue == 0 && journal:
		out = append(out, SendJournal{m.journalBoot, m.journalSeq})
	}
	return out
}

// JournalSent says up to where the journal was sent.
func (m *Machine) JournalSent(now time.Duration, boot, seq uint64) {
	m.journalBoot, m.journalSeq = boot, seq
	m.journalDue = now + backoff(resendAfter, resendMax, m.journalTries)
	m.journalTries++
}

func (m *Machine) forgetJournal() {
	m.journalBoot, m.journalSeq, m.journalDue, m.journalTries = 0, 0, 0, 0
}

func backoff(base, most time.Duration, tries int) time.Duration {
	return min(base<<min(tries, 8), most)
}
