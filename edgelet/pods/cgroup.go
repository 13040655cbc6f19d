package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
)

// cgroupMount is where all hierarchies are.
const cgroupMount = "/sys/fs/cgroup"

// cgroups names and keeps pod cgroups as a kubelet does: one level per QoS class
// below a root, so that what asked for nothing is weighed and killed first. The
// root is bounded by what the node has for pods, a class weighs what its pods ask
// for, and a pod is bounded as a whole.
type cgroups struct {
	root    string // such as "/kubepods"; empty: the runtime chooses
	systemd bool
	mount   string // empty: cgroupMount
	maxPIDs int64  // of one pod; 0: no limit

	// exclusive says whether a pod has processors of its own, and so no quota; nil:
	// none has.
	exclusive func(uid string) bool

	// told is told whether all pods together are bounded; may be nil.
	told func(root string, err error)

	mu        sync.Mutex
	ready     bool
	unlimited bool // what bounds all pods could not be set
	limit     rootLimits
	pods      map[string]held // that have their cgroup, by UID
}

// held is what a pod's class weighs because of it.
type held struct {
	qos   v1.PodQOSClass
	milli int64
	// shares, quota and memory are what the kernel was told.
	shares, quota, memory int64
}

func (c *cgroups) holds(pod *v1.Pod) held {
	l := c.limits(pod)
	return held{qosClass(pod), podRequest(pod, v1.ResourceCPU).MilliValue(), deref(l.shares, 0), l.quota, l.memory}
}

// limits are what a pod's own cgroup is bounded by on this node.
func (c *cgroups) limits(pod *v1.Pod) cgroupLimits {
	l := podLimits(pod)
	if l.quota > 0 && c.exclusive != nil && c.exclusive(string(pod.UID)) {
		l.quota = noQuota
	}
	return l
}

// rootLimits is what all pods together may have.
type rootLimits struct {
	milliCPU, memory, pids int64 // 0: no limit
	hugepages              map[string]int64
}

// parent is the cgroup parent of a pod's containers, in the driver's notation.
func (c *cgroups) parent(pod *v1.Pod) string { return c.path(qosClass(pod), string(pod.UID)) }

// path of a pod's cgroup; without a uid, of its class.
func (c *cgroups) path(qos v1.PodQOSClass, uid string) string {
	if c.root == "" {
		return ""
	}
	class := ""
	switch qos {
	case v1.PodQOSBestEffort:
		class = "besteffort"
	case v1.PodQOSBurstable:
		class = "burstable"
	}
	if uid != "" {
		uid = "pod" + uid
	}
	if !c.systemd {
		return path.Join("/", c.root, class, uid)
	}
	// systemd: each level repeats its parents, dashes separate, so a UID has none.
	name := strings.ReplaceAll(strings.Trim(c.root, "/"), "/", "-")
	dir := "/" + name + ".slice"
	for _, level := range []string{class, strings.ReplaceAll(uid, "-", "_")} {
		if level != "" {
			name += "-" + level
			dir += "/" + name + ".slice"
		}
	}
	return dir
}

// ensure makes the pod's cgroup with its limits, those above it first. One that
// was made is left alone: see apply. Where a kernel has no such controller, or
// doesn't let it be set, pods run without; that a cgroup can't be made at all is an
// error.
func (c *cgroups) ensure(pod *v1.Pod) error {
	if c.root == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, done := c.pods[string(pod.UID)]; done {
		return nil
	}
	if !c.ready {
		if err := c.makeRoots(); err != nil {
			return err
		}
		c.ready = true
	} else if c.unlimited {
		c.limitRoot() // memory that was in use then may have been freed
	}
	if err := c.apply(pod); err != nil {
		return err
	}
	if c.pods == nil {
		c.pods = map[string]held{}
	}
	c.pods[string(pod.UID)] = c.holds(pod)
	c.weighBurstable()
	return nil
}

// apply makes a pod's cgroup and sets its limits.
func (c *cgroups) apply(pod *v1.Pod) error {
	at := c.parent(pod)
	if err := c.make(at); err != nil {
		return fmt.Errorf("the cgroup of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	l := c.limits(pod)
	l.pids = c.maxPIDs
	_ = c.set(at, l)
	return nil
}

// resize lets do change what the containers of a pod have while the pod's own
// cgroup bounds both what it was and what it becomes; then the latter only.
func (c *cgroups) resize(was, becomes *v1.Pod, do func() error) error {
	if c.root == "" {
		return do()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, next := c.limits(was), c.limits(becomes)
	wide := next
	wide.memory = max(old.memory, next.memory)
	if wide.quota = max(old.quota, next.quota); old.quota <= 0 || next.quota <= 0 {
		wide.quota = -1
	}
	at := c.parent(becomes)
	if next.memory == 0 || old.memory == 0 {
		wide.memory = 0 // as it is: a limit can't be removed in place
	}
	_ = c.set(at, wide)
	if err := do(); err != nil {
		return err
	}
	if next.quota == 0 {
		next.quota = -1
	}
	_ = c.set(at, next)
	if _, had := c.pods[string(becomes.UID)]; had {
		c.pods[string(becomes.UID)] = c.holds(becomes)
		c.weighBurstable()
	}
	return nil
}

// follow has a pod's cgroup bound what the pod is to have now, where no container
// that runs is resized: one that was restarted for it, or did not run.
func (c *cgroups) follow(pod *v1.Pod) error {
	c.mu.Lock()
	had, ok := c.pods[string(pod.UID)]
	c.mu.Unlock()
	if !ok || had == c.holds(pod) {
		return nil
	}
	return c.resize(pod, pod, func() error { return nil })
}

// setLimits bounds all pods together.
func (c *cgroups) setLimits(l rootLimits) {
	if c.root == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = l
	if c.ready {
		c.limitRoot()
	}
}

func (c *cgroups) limitRoot() {
	shares := milliCPUToShares(c.limit.milliCPU)
	root := c.path(v1.PodQOSGuaranteed, "")
	err := c.set(root, cgroupLimits{shares: &shares, memory: c.limit.memory, pids: c.limit.pids, hugepages: c.limit.hugepages})
	c.unlimited = err != nil
	if c.told != nil {
		c.told(root, err)
	}
}

// makeRoots makes the levels above pods.
func (c *cgroups) makeRoots() error {
	root := c.path(v1.PodQOSGuaranteed, "")
	for _, at := range []string{root, c.path(v1.PodQOSBurstable, ""), c.path(v1.PodQOSBestEffort, "")} {
		if err := c.make(at); err != nil {
			return fmt.Errorf("the cgroup of all pods: %w", err)
		}
	}
	c.limitRoot()
	least := int64(minShares)
	_ = c.set(c.path(v1.PodQOSBestEffort, ""), cgroupLimits{shares: &least})
	return nil
}

// weighBurstable lets the class weigh what its pods ask for together.
func (c *cgroups) weighBurstable() {
	var sum int64
	for _, p := range c.pods {
		if p.qos == v1.PodQOSBurstable {
			sum += p.milli
		}
	}
	shares := milliCPUToShares(sum)
	_ = c.set(c.path(v1.PodQOSBurstable, ""), cgroupLimits{shares: &shares})
}

// remove removes the pod's cgroup from every hierarchy. It can only be empty
// ones that go: a cgroup with processes refuses.
func (c *cgroups) remove(pod *v1.Pod) {
	parent := c.parent(pod)
	if parent == "" {
		return
	}
	for _, pattern := range []string{c.at() + parent, c.at() + "/*" + parent} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			removeTree(dir, 3)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, had := c.pods[string(pod.UID)]; had {
		delete(c.pods, string(pod.UID))
		if p.qos == v1.PodQOSBurstable {
			c.weighBurstable()
		}
	}
}

func removeTree(dir string, depth int) {
	if entries, err := os.ReadDir(dir); err == nil && depth > 0 {
		for _, e := range entries {
			if e.IsDir() {
				removeTree(filepath.Join(dir, e.Name()), depth-1)
			}
		}
	}
	_ = os.Remove(dir)
}

// at is the mount.
func (c *cgroups) at() string {
	if c.mount == "" {
		return cgroupMount
	}
	return c.mount
}

func (c *cgroups) v2() bool {
	_, err := os.Stat(filepath.Join(c.at(), "cgroup.controllers"))
	return err == nil
}

// controllersV1 are the hierarchies of v1 in which there is something to set. In
// the others, such as cpuset, which wants to be filled first, the runtime makes
// what it needs.
var controllersV1 = [...]string{"cpu", "cpuacct", "memory", "pids", "hugetlb"}

// make makes a cgroup and all above it. Folders that are there stay as they are.
func (c *cgroups) make(cgroup string) error {
	cgroup = path.Clean("/" + cgroup)
	if c.v2() {
		dir := c.at()
		for level := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
			c.delegate(dir)
			dir = filepath.Join(dir, level)
			if err := mkdir(dir); err != nil {
				return err
			}
		}
		c.delegate(dir) // to the containers'
		return nil
	}
	var errs []error
	made := 0
	for _, controller := range controllersV1 {
		base := filepath.Join(c.at(), controller)
		if _, err := os.Stat(base); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(base, cgroup), 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		made++
	}
	if made == 0 && len(errs) > 0 {
		return errors.Join(errs...)
	}
	return nil
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// delegate has the children of a cgroup of v2 counted and bounded. One controller
// that can't be had, because the kernel or the level above lacks it, doesn't keep
// the others away.
func (c *cgroups) delegate(dir string) {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	on, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	already := strings.Fields(string(on))
	for _, controller := range strings.Fields(string(have)) {
		switch controller {
		case "cpu", "cpuset", "io", "memory", "pids", "hugetlb":
			if !slices.Contains(already, controller) {
				_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			}
		}
	}
}

// cgroupLimits are what one cgroup is bounded by. Zero values aren't written,
// but for huge pages, of which none is a limit.
type cgroupLimits struct {
	shares    *int64 // as v1 counts
	quota     int64  // microseconds of quotaPeriod; -1: none
	memory    int64  // bytes
	pids      int64
	hugepages map[string]int64 // by the kernel's name of the size, such as 2MB
}

// set writes limits. What isn't there isn't written, and the error says what the
// kernel didn't take: but for the limits of all pods, that is the runtime's to tell.
func (c *cgroups) set(cgroup string, l cgroupLimits) error {
	v2 := c.v2()
	var errs []error
	write := func(controller, file, value string) {
		dir := c.at()
		if !v2 {
			dir = filepath.Join(dir, controller)
		}
		name := filepath.Join(dir, path.Clean("/"+cgroup), file)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
		if err == nil {
			defer f.Close()
			_, err = f.WriteString(value)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", value, err))
		}
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	if l.shares != nil {
		if v2 {
			write("cpu", "cpu.weight", number(cpuWeight(*l.shares)))
		} else {
			write("cpu", "cpu.shares", number(*l.shares))
		}
	}
	if l.quota != 0 {
		switch {
		case !v2:
			write("cpu", "cpu.cfs_period_us", number(quotaPeriod))
			write("cpu", "cpu.cfs_quota_us", number(l.quota))
		case l.quota < 0:
			write("cpu", "cpu.max", "max "+number(quotaPeriod))
		default:
			write("cpu", "cpu.max", number(l.quota)+" "+number(quotaPeriod))
		}
	}
	if l.memory > 0 {
		if v2 {
			write("memory", "memory.max", number(l.memory))
		} else {
			write("memory", "memory.limit_in_bytes", number(l.memory))
		}
	}
	if l.pids > 0 {
		write("pids", "pids.max", number(l.pids))
	}
	for size, bytes := range l.hugepages {
		if v2 {
			write("hugetlb", "hugetlb."+size+".max", number(bytes))
		} else {
			write("hugetlb", "hugetlb."+size+".limit_in_bytes", number(bytes))
		}
	}
	return errors.Join(errs...)
}

// cpuWeight converts as runc does since 1.3.2 (opencontainers/cgroups,
// ConvertCPUSharesToCgroupV2Value): a curve through the least, the most, and 1024
// shares, which is the weight 100 that a cgroup begins with.
func cpuWeight(shares int64) int64 {
	switch {
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return 10000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
