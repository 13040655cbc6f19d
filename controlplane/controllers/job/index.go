package job

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/storage/names"
)

const noIndex = -1

func isIndexed(job *batch.Job) bool {
	return job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batch.IndexedCompletion
}

func perIndexBackoff(job *batch.Job) bool { return job.Spec.BackoffLimitPerIndex != nil }

// indexOf returns the completion index in a pod's annotation, noIndex if it has none or a wrong one.
func indexOf(pod *v1.Pod) int {
	ix, err := strconv.Atoi(pod.Annotations[batch.JobCompletionIndexAnnotation])
	if err != nil || ix < 0 {
		return noIndex
	}
	return ix
}

// validIndex returns the pod's index if it is one of the job's.
func validIndex(job *batch.Job, pod *v1.Pod) (int, bool) {
	ix := indexOf(pod)
	return ix, ix != noIndex && ix < int(*job.Spec.Completions)
}

func indexesOf(pods []*v1.Pod) sets.Set[int] {
	set := sets.New[int]()
	for _, pod := range pods {
		if ix := indexOf(pod); ix != noIndex {
			set.Insert(ix)
		}
	}
	return set
}

// interval is a range of indexes, both ends included.
type interval struct{ first, last int }

// intervals is an ordered list of ranges that neither overlap nor touch. Its text form is that of status.completedIndexes,
// such as "1,3-5,7": three and more are a range.
type intervals []interval

// parseIntervals reads the text form. What lies at or above completions is cut off, what can't be read is left out.
func parseIntervals(text string, completions int) intervals {
	var out intervals
	if text == "" {
		return nil
	}
	for _, part := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		if first >= completions {
			break
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				continue
			}
			last = min(last, completions-1)
		}
		if first < 0 || last < first || len(out) > 0 && first <= out[len(out)-1].last {
			continue
		}
		if n := len(out); n > 0 && out[n-1].last == first-1 {
			out[n-1].last = last
		} else {
			out = append(out, interval{first, last})
		}
	}
	return out
}

func (a intervals) String() string {
	var b strings.Builder
	for _, iv := range a {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		switch iv.last - iv.first {
		case 0:
			fmt.Fprintf(&b, "%d", iv.first)
		case 1:
			fmt.Fprintf(&b, "%d,%d", iv.first, iv.last)
		default:
			fmt.Fprintf(&b, "%d-%d", iv.first, iv.last)
		}
	}
	return b.String()
}

func (a intervals) total() int {
	n := 0
	for _, iv := range a {
		n += iv.last - iv.first + 1
	}
	return n
}

func (a intervals) has(ix int) bool {
	_, found := slices.BinarySearchFunc(a, ix, func(iv interval, ix int) int {
		switch {
		case iv.last < ix:
			return -1
		case iv.first > ix:
			return 1
		}
		return 0
	})
	return found
}

// with returns the union with single indexes.
func (a intervals) with(indexes sets.Set[int]) intervals {
	list := sets.List(indexes)
	b := make(intervals, len(list))
	for i, ix := range list {
		b[i] = interval{ix, ix}
	}
	return a.union(b)
}

func (a intervals) union(b intervals) intervals {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y interval) int { return x.first - y.first })
	var out intervals
	for _, iv := range all {
		if n := len(out); n > 0 && iv.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, iv.last)
		} else {
			out = append(out, iv)
		}
	}
	return out
}

// gaps returns the first n indexes below completions that are in none of the ranges.
func (a intervals) gaps(n, completions int) []int {
	var out []int
	next := 0
	for _, iv := range append(slices.Clone(a), interval{completions, completions}) {
		for ; next < min(iv.first, completions) && len(out) < n; next++ {
			out = append(out, next)
		}
		next = max(next, iv.last+1)
	}
	return out
}

// overlap counts the indexes that are in both.
func (a intervals) overlap(b intervals) int {
	n := 0
	for i, j := 0, 0; i < len(a) && j < len(b); {
		n += max(0, min(a[i].last, b[j].last)-max(a[i].first, b[j].first)+1)
		if a[i].last < b[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// failureCount reads how often the pod's index failed before it: counted by the failure policy, and ignored by it.
func failureCount(pod *v1.Pod) (counted, ignored int32) {
	read := func(key string) int32 {
		n, err := strconv.Atoi(pod.Annotations[key])
		if err != nil || n < 0 || n > math.MaxInt32 {
			return 0
		}
		return int32(n)
	}
	return read(batch.JobIndexFailureCountAnnotation), read(batch.JobIndexIgnoredFailureCountAnnotation)
}

// asIndex makes a pod template that of one index. replaced is the failed pod that the new one takes the place of, or nil.
func asIndex(job *batch.Job, template *v1.PodTemplateSpec, ix int, replaced *v1.Pod) (own *v1.PodTemplateSpec, generateName string) {
	own = template.DeepCopy()
	if own.Annotations == nil {
		own.Annotations = map[string]string{}
	}
	if own.Labels == nil {
		own.Labels = map[string]string{}
	}
	own.Annotations[batch.JobCompletionIndexAnnotation] = strconv.Itoa(ix)
	own.Labels[batch.JobCompletionIndexAnnotation] = strconv.Itoa(ix)
	own.Spec.Hostname = fmt.Sprintf("%s-%d", job.Name, ix)
	if perIndexBackoff(job) {
		var counted, ignored int32
		if replaced != nil {
			counted, ignored = failureCount(replaced)
			if judge(job.Spec.PodFailurePolicy, replaced).counts {
				counted++
			} else {
				ignored++
			}
		}
		own.Annotations[batch.JobIndexFailureCountAnnotation] = strconv.Itoa(int(counted))
		if ignored > 0 {
			own.Annotations[batch.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(ignored))
		}
	}
	suffix := fmt.Sprintf("-%d-", ix)
	generateName = job.Name + suffix
	if len(generateName) > names.MaxGeneratedNameLength {
		generateName = generateName[:names.MaxGeneratedNameLength-len(suffix)] + suffix
	}
	return own, generateName
}

// addIndexEnv gives every container the variable JOB_COMPLETION_INDEX, unless it has one of that name.
func addIndexEnv(template *v1.PodTemplateSpec) {
	const name = "JOB_COMPLETION_INDEX"
	for _, list := range [][]v1.Container{template.Spec.InitContainers, template.Spec.Containers} {
		for i := range list {
			if slices.ContainsFunc(list[i].Env, func(e v1.EnvVar) bool { return e.Name == name }) {
				continue
			}
			list[i].Env = append(list[i].Env, v1.EnvVar{Name: name, ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{
				FieldPath: fmt.Sprintf("metadata.labels['%s']", batch.JobCompletionIndexAnnotation),
			}}})
		}
	}
}
