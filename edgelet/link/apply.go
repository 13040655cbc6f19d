package link

import (
	"fmt"
	"maps"
	"slices"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Decision is what becomes of an order.
type Decision struct {
	// Status is APPLIED if the change below is to be made durable; otherwise the
	// order changes nothing and this is the answer.
	Status  fleet.AckStatus
	Message string
	Upserts []*fleet.Object
	Removes []string
	// Result is the set once the change is durable.
	Result fleet.Set
	// Want is, after a list, what the node lacks or has otherwise.
	Want []*fleet.Want
	// More: pods may be missing in Result that the node should have.
	More bool
}

// Decide says what a node that has `set`, by the order `have`, makes of order o.
// unix is the time in seconds that has surely passed, for orders that expire. It
// is pure.
//
// The rules, in this order: another incarnation's orders are refused, so are
// older ones; the same is answered again; an expired one is refused; an order
// that takes something away must come from a hub that has synced; a delta must
// start from exactly what the node has and lead to exactly what the hub expects.
// A list keeps what is in it, in whatever version the node has it, removes the
// rest, and the answer says what is wanted.
func Decide(have fleet.OrderVersion, set fleet.Set, o *fleet.Order, unix int64) Decision {
	refuse := func(status fleet.AckStatus, format string, args ...any) Decision {
		return Decision{Status: status, Message: fmt.Sprintf(format, args...), Result: set}
	}
	got := fleet.VersionFrom(o.GetVersion())
	if got.Incarnation == "" {
		return refuse(fleet.AckStatus_FAILED, "order without incarnation")
	}
	switch fleet.Compare(have, got) {
	case fleet.Foreign:
		return refuse(fleet.AckStatus_OTHER_INCARNATION, "this node carries out orders of %s, not of %s: it keeps what it runs until an operator confirms the change", have, got)
	case fleet.Older:
		return refuse(fleet.AckStatus_STALE, "order %s is older than %s", got, have)
	case fleet.Same:
		d := refuse(fleet.AckStatus_DUPLICATE, "")
		if o.GetList() {
			d.Want = wants(set, o)
		}
		return d
	}
	if e := o.GetExpires(); e != 0 && unix >= e {
		return refuse(fleet.AckStatus_FAILED, "order %s has expired", got)
	}
	if o.GetList() {
		return decideList(set, o, refuse)
	}
	return decideDelta(set, o, refuse)
}

func decideList(set fleet.Set, o *fleet.Order, refuse func(fleet.AckStatus, string, ...any) Decision) Decision {
	list, err := fleet.SetFrom(o.GetEntries())
	if err != nil {
		return refuse(fleet.AckStatus_FAILED, "%v", err)
	}
	d := Decision{Status: fleet.AckStatus_APPLIED, Result: fleet.Set{}}
	for uid, hash := range set {
		if _, ok := list[uid]; ok {
			d.Result[uid] = hash
		} else {
			d.Removes = append(d.Removes, uid)
		}
	}
	if len(d.Removes) > 0 && !o.GetSynced() {
		return refuse(fleet.AckStatus_NOT_SYNCED, "the hub has not synced: %d objects are kept", len(d.Removes))
	}
	slices.Sort(d.Removes)
	d.Want = wants(d.Result, o)
	for _, w := range d.Want {
		d.More = d.More || len(w.GetHave()) == 0
	}
	return d
}

// wants compares what the node has with the list, in the order of the list.
func wants(set fleet.Set, o *fleet.Order) []*fleet.Want {
	var out []*fleet.Want
	for _, e := range o.GetEntries() {
		hash, ok := set[e.GetUid()]
		switch {
		case !ok:
			out = append(out, &fleet.Want{Uid: e.GetUid()})
		case string(hash[:]) != string(e.GetHash()):
			out = append(out, &fleet.Want{Uid: e.GetUid(), Have: hash[:]})
		}
	}
	return out
}

func decideDelta(set fleet.Set, o *fleet.Order, refuse func(fleet.AckStatus, string, ...any) Decision) Decision {
	if digest := set.Digest(); string(o.GetBase()) != string(digest[:]) {
		return refuse(fleet.AckStatus_MISMATCH, "the order starts from another set than this node has")
	}
	if len(o.GetRemoves()) > 0 && !o.GetSynced() {
		return refuse(fleet.AckStatus_NOT_SYNCED, "the hub has not synced: %d objects are kept", len(o.GetRemoves()))
	}
	result := maps.Clone(set)
	if result == nil {
		result = fleet.Set{}
	}
	for _, uid := range o.GetRemoves() {
		delete(result, uid)
	}
	for _, obj := range o.GetUpserts() {
		hash, err := checkObject(obj)
		if err != nil {
			return refuse(fleet.AckStatus_FAILED, "%v", err)
		}
		result[obj.GetUid()] = hash
	}
	if digest := result.Digest(); string(o.GetDigest()) != string(digest[:]) {
		return refuse(fleet.AckStatus_MISMATCH, "the order leads to another set than it says")
	}
	return Decision{Status: fleet.AckStatus_APPLIED, Upserts: o.GetUpserts(), Removes: o.GetRemoves(), Result: result, More: o.GetMore()}
}

// checkObject checks everything that can be known without keys.
func checkObject(o *fleet.Object) (fleet.Hash, error) {
	name := fmt.Sprintf("%s %s/%s", o.GetKind(), o.GetNamespace(), o.GetName())
	hash, err := fleet.HashFrom(o.GetHash())
	if err != nil {
		return hash, fmt.Errorf("%s: %w", name, err)
	}
	ways := 0
	for _, has := range []bool{len(o.GetRaw()) > 0, len(o.GetSealed()) > 0, o.GetSize() > 0} {
		if has {
			ways++
		}
	}
	switch {
	case o.GetUid() == "" || o.GetKind() == "" || o.GetName() == "":
		return hash, fmt.Errorf("%s: %w: UID, kind or name is missing", name, fleet.ErrMalformed)
	case ways != 1:
		return hash, fmt.Errorf("%s: %w: want one of raw, sealed, size; got %d", name, fleet.ErrMalformed, ways)
	case o.GetSize() > fleet.MaxObject:
		return hash, fmt.Errorf("%s: %w: %d bytes", name, fleet.ErrTooLarge, o.GetSize())
	case o.GetKind() == "Secret" && len(o.GetRaw()) > 0:
		return hash, fmt.Errorf("%s: %w: a Secret must be sealed", name, fleet.ErrMalformed)
	case len(o.GetRaw()) > 0 && fleet.HashObject(o.GetRaw()) != hash:
		return hash, fmt.Errorf("%s: %w: its bytes don't have its hash", name, fleet.ErrMalformed)
	}
	return hash, nil
}
