package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

const (
	maxJournalBytes = 24 << 10 // per message
	maxRunning      = 1000     // pods listed in a Hello
	turnTime        = 2 * time.Millisecond
	// journalWait is how long history waits at least for something to travel with:
	// what happened is followed by a report of what is.
	journalWait = 250 * time.Millisecond
	// reconnectIn is what the hub is told when a connection is ended for another:
	// a handshake over a satellite takes some seconds.
	reconnectIn = 15 * time.Second
)

// session is what Run's goroutine needs for one connection.
type session struct {
	l        *Link
	conn     *conn
	arrived  time.Time       // of the message being handled
	standing *fleet.Standing // in it
	fetched  chan fetchResult
	ctx      context.Context

	// Waits to be sent in one message.
	ack     *fleet.Ack
	reports []string
	journal *SendJournal
	tunnel  *fleet.TunnelAnswer
	confirm bool       // the Welcome
	last    paho.Token // of what was sent last
	gather  time.Duration
	flush   *time.Timer
	flushAt time.Time // zero: flush is not armed

	reconnect bool
	refused   error
}

// connection runs one connection from dialing to its end; live says whether the
// hub welcomed us on it.
func (l *Link) connection(ctx context.Context) (live bool, err error) {
	c, err := l.dial(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &session{l: l, conn: c, ctx: ctx, fetched: make(chan fetchResult, 1), flush: time.NewTimer(time.Hour)}
	defer func() {
		cancel()
		c.client.Disconnect(uint(l.c.ShutdownWait / time.Millisecond))
		s.flush.Stop()
		l.machine.Disconnected()
		l.note(func(st *Status) { live = live || st.Live; st.Connected, st.Live = false, false })
	}()
	s.do(l.machine.Connected(l.now()))
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		s.arm(due)
		select {
		case <-ctx.Done():
			s.bye("shutting down", 0)
			return false, ctx.Err()
		case err := <-c.lost:
			return false, fmt.Errorf("connection lost: %w", err)
		case <-c.more:
			for _, payload := range c.take() {
				s.receive(payload)
			}
		case <-l.c.State.Outbox():
			s.outbox()
		case <-l.budget:
			s.outbox()
		case <-s.flush.C:
			s.flushAt = time.Time{}
			s.send()
		case r := <-s.fetched:
			s.do(l.machine.Fetched(r.got, r.failed))
		case <-due.C:
			s.do(l.machine.Tick(l.now()))
			s.outbox()
		}
		if s.refused != nil {
			return false, s.refused
		}
		if s.reconnect {
			s.bye("reconnecting", reconnectIn)
			return true, errReconnect
		}
	}
}

func (s *session) arm(due *time.Timer) {
	if at, ok := s.l.machine.Deadline(); ok {
		due.Reset(max(at-s.l.now(), time.Millisecond))
	} else {
		due.Stop()
	}
}

// receive verifies a message and gives it to the machine.
func (s *session) receive(payload []byte) {
	l := s.l
	s.arrived = l.c.Now()
	var d fleet.Down
	if err := l.codec.Decode(fleet.DirDown, l.c.NodeName, payload, l.c.Trust.Key, &d); err != nil {
		l.counters.Refused()
		l.log.Warn("message refused", "error", err)
		return
	}
	l.counters.Received(&d, len(payload))
	s.standing = d.GetStanding()
	unix := max(l.c.State.TimeFloor().Unix(), 0)
	s.do(l.machine.Down(l.now(), unix, l.c.Rand(), &d))
}

// do carries out what the machine decided.
func (s *session) do(outputs []Output) {
	l := s.l
	for _, o := range outputs {
		switch o := o.(type) {
		case SendHello:
			s.hello()
		case SendAck:
			if s.ack != nil {
				s.send()
			}
			s.ack = o.Ack
			if o.Ack.GetStatus() != fleet.AckStatus_APPLIED && o.Ack.GetStatus() != fleet.AckStatus_DUPLICATE {
				l.log.Warn("order not carried out", "order", fleet.VersionFrom(o.Ack.GetVersion()), "status", o.Ack.GetStatus(), "reason", o.Ack.GetMessage())
			}
			s.soon()
		case SendReports:
			for _, uid := range o.UIDs {
				if !slices.Contains(s.reports, uid) {
					s.reports = append(s.reports, uid) // what it says is read when it is sent
				}
			}
			s.soon()
		case SendJournal:
			if s.holdJournal(o) {
				continue
			}
			s.journal = &o
			s.within(max(s.gather, journalWait))
		case StoreOrder:
			apply := l.c.State.Apply
			if o.More {
				apply = l.c.State.ApplyPart
			}
			err := apply(o.Version, o.Upserts, o.Removes, s.arrived)
			now := l.c.Now()
			for _, obj := range o.Upserts {
				l.c.State.Times(obj.GetUid()).Mark(trace.NodeAcked, now)
			}
			s.do(l.machine.Stored(err))
		case Fetch:
			if failed := s.tooMuch(o.Objects); failed != nil {
				s.do(l.machine.Fetched(nil, failed))
				continue
			}
			s.fetch(o.Objects)
		case ReleaseReport:
			if o.Verdict == fleet.Verdict_REJECTED {
				l.log.Warn("report rejected by the API server", "uid", o.UID, "message", o.Message)
			}
			l.c.State.Acked(o.UID, o.Stamp)
		case ReleaseJournal:
			l.c.State.JournalAcked(o.Boot, o.Seq)
			s.outbox()
		case RepeatReports:
			s.repeat(o)
		case OpenTunnel:
			s.openTunnel(o.Request)
		case Use:
			if s.standing == nil {
				l.c.OnStanding(nil)
			}
			s.use(o.Welcome)
		case Told:
			l.c.OnStanding(o.Standing)
			if o.Standing.Refuses() {
				s.refused = fmt.Errorf("%w: %s", ErrRefused, o.Standing.GetState()) // why is OnStanding's to say
			}
		case Renew:
			l.c.OnTrust(o.Trust.GetId(), time.Duration(o.Trust.GetJitter())*time.Millisecond)
		case AnswerProbe:
			s.answer(o.Grant)
		case Refused:
			l.counters.Refused()
			l.log.Info("message not obeyed", "reason", o.Reason)
		}
	}
}

// soon sends what has gathered when the first of it has waited as long as the
// link's class says.
func (s *session) soon() { s.within(s.gather) }

// atOnce sends what has gathered, and what else this turn brings.
func (s *session) atOnce() { s.within(min(s.gather, turnTime)) }

func (s *session) within(d time.Duration) {
	at := s.l.c.Now().Add(d)
	if s.flushAt.IsZero() || at.Before(s.flushAt) {
		s.flush.Reset(d)
		s.flushAt = at
	}
}

// send puts all that has gathered into one message.
func (s *session) send() {
	l := s.l
	if s.ack == nil && len(s.reports) == 0 && s.journal == nil && s.tunnel == nil {
		if !s.confirm {
			return
		}
		digest, version := l.machine.Set().Digest(), l.machine.Version().Proto()
		s.ack = &fleet.Ack{Version: version, Status: fleet.AckStatus_DUPLICATE, Current: version, Digest: digest[:]}
	}
	s.confirm = false
	up := l.machine.Header()
	up.Ack, up.Tunnel = s.ack, s.tunnel
	s.ack, s.tunnel = nil, nil
	if len(s.reports) > 0 {
		up.Report = &fleet.Report{}
		for _, uid := range s.reports {
			if uid == "" {
				up.Report.Node = l.c.State.NodeReport()
			} else if r := l.c.State.Report(uid); r != nil {
				up.Report.Pods = append(up.Report.Pods, r)
			}
		}
		s.reports = nil
	}
	if s.journal != nil {
		j, err := l.c.State.JournalPending(s.journal.Boot, s.journal.Seq, maxJournalBytes)
		s.journal = nil
		switch n := len(j.GetEntries()); {
		case err != nil:
			l.log.Error("journal", "error", err)
		case n > 0:
			up.Journal = j
			l.machine.JournalSent(l.now(), j.Entries[n-1].GetBoot(), j.Entries[n-1].GetSeq())
		case len(j.GetGaps()) > 0:
			up.Journal = j
			g := j.Gaps[len(j.Gaps)-1]
			l.machine.JournalSent(l.now(), g.GetBoot(), g.GetTo())
		}
	}
	s.publish(up)
}

// publish signs and sends; what doesn't fit into one message goes in several.
func (s *session) publish(up *fleet.Up) {
	l := s.l
	payload, err := l.codec.Encode(fleet.DirUp, l.c.NodeName, l.c.Key, up, nil)
	if errors.Is(err, fleet.ErrTooLarge) {
		if parts := s.split(up); len(parts) > 1 {
			for _, part := range parts {
				s.publish(part)
			}
			return
		}
	}
	if err != nil {
		l.log.Error("message not sent", "error", err)
		return
	}
	l.counters.Sent(up, len(payload))
	// The broker's acknowledgement means nothing to us: ours come from the hub.
	s.last = s.conn.client.Publish(s.conn.topic, fleet.QoS, false, payload)
}

// split makes a message of each part, and of each half of many reports.
func (s *session) split(up *fleet.Up) []*fleet.Up {
	var out []*fleet.Up
	add := func(set func(*fleet.Up)) {
		part := s.l.machine.Header()
		set(part)
		out = append(out, part)
	}
	if up.GetAck() != nil {
		add(func(p *fleet.Up) { p.Ack = up.Ack })
	}
	if pods := up.GetReport().GetPods(); len(pods) > 0 {
		half := (len(pods) + 1) / 2
		add(func(p *fleet.Up) { p.Report = &fleet.Report{Pods: pods[:half]} })
		if half < len(pods) {
			add(func(p *fleet.Up) { p.Report = &fleet.Report{Pods: pods[half:]} })
		}
	}
	if up.GetReport().GetNode() != nil {
		add(func(p *fleet.Up) { p.Report = &fleet.Report{Node: up.Report.Node} })
	}
	if up.GetJournal() != nil {
		add(func(p *fleet.Up) { p.Journal = up.Journal })
	}
	if up.GetTunnel() != nil {
		add(func(p *fleet.Up) { p.Tunnel = up.Tunnel })
	}
	return out
}

func (s *session) hello() {
	l := s.l
	s.ack, s.reports, s.journal, s.confirm = nil, nil, nil, false // of the session before
	set := l.machine.Set()
	digest := set.Digest()
	h := &fleet.Hello{
		Version: l.machine.Version().Proto(), Digest: digest[:], RunningComplete: true,
		Features: l.c.Features, BootId: l.c.BootID, Keepalive: uint32(s.conn.keepalive / time.Second),
		KnownKeys: l.c.Trust.Known(), AgentVersion: l.c.AgentVersion, LinkClass: l.c.LinkClass, Protocol: fleet.ProtocolVersion,
		Board: l.c.Board(), Trust: l.c.TrustID(),
	}
	if l.c.Addresses != nil && l.c.Learn != nil {
		h.Addresses = l.c.Addresses().Hash()
	}
	for _, r := range l.c.State.Reports() {
		if len(h.Running) == maxRunning {
			h.RunningComplete = false
			break
		}
		p := &fleet.RunningPod{Uid: r.UID, Stamp: &fleet.Stamp{Boot: r.Stamp.Boot, Seq: r.Stamp.Seq}, Mirror: r.IsMirror, Gone: r.Gone}
		if r.Stamp.Store != l.c.State.ID() {
			p.Stamp.Store = []byte(r.Stamp.Store)
		}
		if _, ok := set[r.UID]; !ok && r.UID != "" {
			p.Namespace, p.Name = r.Namespace, r.Name
		}
		h.Running = append(h.Running, p)
	}
	up := l.machine.Header()
	up.Hello = h
	l.note(func(st *Status) { st.Live, st.Session = false, l.machine.Session() })
	s.publish(up)
}

// answer shows the hub that this board is there, whatever session it takes for
// the current one.
func (s *session) answer(grant fleet.GrantID) {
	l := s.l
	digest, version := l.machine.Set().Digest(), l.machine.Version().Proto()
	up := l.machine.Header()
	up.Grant = grant.Proto()
	up.Ack = &fleet.Ack{Version: version, Status: fleet.AckStatus_DUPLICATE, Current: version, Digest: digest[:]}
	s.publish(up)
}

func (s *session) bye(reason string, backIn time.Duration) {
	if s.l.machine.Phase() != Live {
		return
	}
	s.send()
	up := s.l.machine.Header()
	up.Bye = &fleet.Bye{Reason: reason, BackIn: uint32(backIn / time.Second)}
	s.publish(up)
	// Except here: a connection that is closed while the broker still writes to it
	// is reset, and what the broker hasn't read of it, the Bye, is gone.
	if s.last != nil {
		s.last.WaitTimeout(s.l.c.ShutdownWait)
	}
}

// outbox offers the machine what isn't answered for.
func (s *session) outbox() {
	l := s.l
	if l.machine.Phase() != Live {
		return
	}
	refs, journal := s.waiting()
	s.do(l.machine.Outbox(l.now(), refs, journal))
}

func (s *session) repeat(o RepeatReports) {
	st := s.l.c.State
	if o.Node || o.All {
		st.Unack("")
	}
	for _, uid := range o.UIDs {
		st.Unack(uid)
	}
	if o.All {
		for _, r := range st.Reports() {
			st.Unack(r.UID)
		}
	}
	s.outbox()
}

func (s *session) openTunnel(r *fleet.TunnelRequest) {
	answer := &fleet.TunnelAnswer{Id: r.GetId()}
	if s.l.c.OnTunnel == nil {
		answer.Error = "this node opens no tunnels"
	} else if err := s.l.c.Budget.Fits(0); err != nil {
		answer.Error = err.Error()
	} else if err := s.l.c.OnTunnel(r); err != nil {
		answer.Error = err.Error()
	}
	if answer.Error == "" {
		return // its dialing is the answer
	}
	s.tunnel = answer
	s.atOnce()
}

// use takes the hub's word on the link, and begins to empty the outbox.
func (s *session) use(w *fleet.Welcome) {
	l := s.l
	if err := keepSettings(l.c.State, w); err != nil {
		l.log.Warn("not durable", "error", err)
	}
	said := l.settings()
	if s.gather = l.c.Coalesce; s.gather == 0 {
		s.gather = said.Gather
	}
	l.c.Budget.Set(said.budget)
	l.note(func(st *Status) { st.Live, st.LastError, st.Err, st.Class = true, "", nil, said.Name })
	l.log.Info("fleet link is live", "broker", l.Status().Broker, "class", said.Name, "order", fleet.VersionFrom(w.GetVersion()), "inSync", w.GetInSync())
	if a := w.GetAddresses(); a != nil && l.c.Learn != nil {
		if err := l.c.Learn(a); err != nil {
			l.log.Warn("the control plane's addresses aren't taken", "error", err)
		}
	}
	if t := w.GetTime(); t > 0 {
		l.c.Budget.Heard(time.Unix(0, t))
		if err := l.c.State.RaiseTimeFloor(time.Unix(0, t)); err != nil {
			l.log.Warn("time floor", "error", err)
		}
	}
	if differs(s.conn.keepalive, said.Keepalive) {
		s.reconnect = true
		return
	}
	// The next message, whatever it says, tells the hub that its Welcome arrived
	// and that this Hello was no recording. If there is nothing to say, an
	// acknowledgement does.
	s.confirm = true
	s.atOnce()
	s.outbox()
}
