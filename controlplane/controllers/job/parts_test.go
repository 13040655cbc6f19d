package job

import (
	"math/rand"
	"slices"
	"testing"
	"time"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

func TestIntervals(t *testing.T) {
	for _, c := range []struct {
		text        string
		completions int
		want        string
		total       int
	}{
		{"", 5, "", 0},
		{"0", 5, "0", 1},
		{"0,1", 5, "0,1", 2},
		{"0,1,2", 5, "0-2", 3},
		{"1-3,4", 10, "1-4", 4},
		{"1,3-5,7", 10, "1,3-5,7", 5},
		{"1,3-5,7", 5, "1,3,4", 3},
		{"9", 5, "", 0},
		{"x,2,3-y,4", 5, "2,4", 2},
		{"5-2,3", 9, "3", 1},
		{"-1", 9, "", 0},
		{"3,1", 9, "3", 1},
	} {
		got := parseIntervals(c.text, c.completions)
		if got.String() != c.want || got.total() != c.total {
			t.Errorf("%q below %d: %q with %d, want %q with %d", c.text, c.completions, got, got.total(), c.want, c.total)
		}
	}
}

// Against plain sets.
func TestIntervalsAreSets(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	const n = 40
	random := func() sets.Set[int] {
		s := sets.New[int]()
		for range rng.Intn(n) {
			s.Insert(rng.Intn(n))
		}
		return s
	}
	for range 2000 {
		a, b := random(), random()
		ia, ib := intervals(nil).with(a), intervals(nil).with(b)
		if got, want := ia.union(ib).String(), intervals(nil).with(a.Union(b)).String(); got != want {
			t.Fatalf("%v union %v is %s, want %s", ia, ib, got, want)
		}
		if got, want := ia.overlap(ib), a.Intersection(b).Len(); got != want {
			t.Fatalf("%v overlaps %v in %d, want %d", ia, ib, got, want)
		}
		var free []int
		for ix := range n {
			if ia.has(ix) != a.Has(ix) {
				t.Fatalf("%v has %d: %v", ia, ix, ia.has(ix))
			}
			if !a.Has(ix) {
				free = append(free, ix)
			}
		}
		k := rng.Intn(n + 2)
		if got, want := ia.gaps(k, n), free[:min(k, len(free))]; !slices.Equal(got, want) {
			t.Fatalf("gaps of %v: %v, want %v", ia, got, want)
		}
		if again := parseIntervals(ia.String(), n); again.String() != ia.String() {
			t.Fatalf("%v is read back as %v", ia, again)
		}
	}
}

func FuzzParseIntervals(f *testing.F) {
	for _, s := range []string{"", "0", "1,3-5,7", "5-2", "a", "0-9999999999999999999", "1--2", ",", "-"} {
		f.Add(s, 10)
	}
	f.Fuzz(func(t *testing.T, text string, completions int) {
		got := parseIntervals(text, completions)
		last := -2
		for _, iv := range got {
			if iv.first <= last+1 || iv.last < iv.first || iv.first < 0 || iv.last >= completions {
				t.Fatalf("%q below %d: %v", text, completions, got)
			}
			last = iv.last
		}
		if again := parseIntervals(got.String(), completions); again.String() != got.String() {
			t.Fatalf("%v is read back as %v", got, again)
		}
	})
}

func TestBackoff(t *testing.T) {
	clock := clocktesting.NewFakeClock(fixture.Start())
	for _, c := range []struct {
		count int32
		ago   time.Duration
		want  time.Duration
	}{
		{0, 0, 0},
		{1, 0, 10 * time.Second},
		{1, 4 * time.Second, 6 * time.Second},
		{1, 11 * time.Second, 0},
		{3, 0, 40 * time.Second},
		{7, 0, 10 * time.Minute},
		{1000, 0, 10 * time.Minute},
	} {
		f := failures{count: c.count, last: fixture.Start().Add(-c.ago)}
		if got := f.wait(clock); got != c.want {
			t.Errorf("%d failures, the last %s ago: wait %s, want %s", c.count, c.ago, got, c.want)
		}
	}
	at := func(code int32, ago time.Duration) *v1.Pod { return podOf("p", exited(code, ago)) }
	for _, c := range []struct {
		name              string
		before            int32
		succeeded, failed []*v1.Pod
		want              int32
	}{
		{"nothing new", 2, nil, nil, 2},
		{"two more", 2, nil, []*v1.Pod{at(1, 5), at(1, 3)}, 4},
		{"a success wipes out", 2, []*v1.Pod{at(0, 5)}, nil, 0},
		{"failures after the success count", 2, []*v1.Pod{at(0, 5*time.Second)}, []*v1.Pod{at(1, 9*time.Second), at(1, 2*time.Second)}, 1},
	} {
		if got := (failures{count: c.before}).after(c.succeeded, c.failed); got.count != c.want {
			t.Errorf("%s: %d, want %d", c.name, got.count, c.want)
		}
	}
}

func TestFailurePolicy(t *testing.T) {
	codes := func(action batch.PodFailurePolicyAction, op batch.PodFailurePolicyOnExitCodesOperator, container *string, values ...int32) batch.PodFailurePolicyRule {
		return batch.PodFailurePolicyRule{Action: action, OnExitCodes: &batch.PodFailurePolicyOnExitCodesRequirement{ContainerName: container, Operator: op, Values: values}}
	}
	in, notIn := batch.PodFailurePolicyOnExitCodesOpIn, batch.PodFailurePolicyOnExitCodesOpNotIn
	for _, c := range []struct {
		name  string
		rules []batch.PodFailurePolicyRule
		pod   *v1.Pod
		want  verdict
	}{
		{"no rule matches", []batch.PodFailurePolicyRule{codes(batch.PodFailurePolicyActionIgnore, in, nil, 5)}, podOf("a", exited(1, 0)), verdict{counts: true}},
		{"the first that matches decides", []batch.PodFailurePolicyRule{codes(batch.PodFailurePolicyActionIgnore, in, nil, 1), codes(batch.PodFailurePolicyActionFailJob, in, nil, 1)}, podOf("a", exited(1, 0)), verdict{}},
		{"fail the job", []batch.PodFailurePolicyRule{codes(batch.PodFailurePolicyActionFailJob, notIn, nil, 5)}, podOf("a", exited(1, 0)),
			verdict{counts: true, failJob: "Container c for pod ns/a failed with exit code 1 matching FailJob rule at index 0"}},
		{"fail the index", []batch.PodFailurePolicyRule{codes(batch.PodFailurePolicyActionFailIndex, in, nil, 1)}, podOf("a", exited(1, 0)), verdict{counts: true, failIndex: true}},
		{"of another container", []batch.PodFailurePolicyRule{codes(batch.PodFailurePolicyActionIgnore, in, ptr.To("other"), 1)}, podOf("a", exited(1, 0)), verdict{counts: true}},
		{"code 0 is no failure", []batch.PodFailurePolicyRule{codes(batch.PodFailurePolicyActionIgnore, notIn, nil, 5)}, podOf("a", exited(0, 0)), verdict{counts: true}},
	} {
		if got := judge(&batch.PodFailurePolicy{Rules: c.rules}, c.pod); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	if got := judge(nil, podOf("a")); !got.counts {
		t.Errorf("without a policy: %+v", got)
	}
}

func TestSuccessPolicy(t *testing.T) {
	rule := func(indexes *string, count *int32) batch.SuccessPolicyRule {
		return batch.SuccessPolicyRule{SucceededIndexes: indexes, SucceededCount: count}
	}
	for _, c := range []struct {
		rule batch.SuccessPolicyRule
		done string
		want bool
	}{
		{rule(ptr.To("0-2"), nil), "0,1", false},
		{rule(ptr.To("0-2"), nil), "0-2,5", true},
		{rule(ptr.To("0-2"), ptr.To(int32(2))), "1,2,7", true},
		{rule(ptr.To("0-2"), ptr.To(int32(2))), "2,7,8", false},
		{rule(nil, ptr.To(int32(3))), "2,7,8", true},
		{rule(nil, ptr.To(int32(3))), "2,7", false},
		{rule(ptr.To("nonsense"), nil), "2,7", false},
	} {
		message, got := succeeds(&batch.SuccessPolicy{Rules: []batch.SuccessPolicyRule{c.rule}}, 10, parseIntervals(c.done, 10))
		if got != c.want || got && message != "Matched rules at index 0" {
			t.Errorf("%+v with %s: %v %q", c.rule, c.done, got, message)
		}
	}
}
