package stats

import (
	"cmp"
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Files is what lies on the node's disks.
type Files struct {
	// At is the wall clock.
	At time.Time
	// Node is the file system of volumes and logs.
	Node Space
	// Image is that of images, and Container that of containers' writable layers,
	// with what images and layers take in Used. Image is nil if the runtime doesn't say.
	Image, Container *Space
	// Pods by UID.
	Pods map[string]PodFiles

	taken   time.Time
	layered time.Time // when the runtime was last asked for layers
}

// Separate says whether images have a file system of their own.
func (f *Files) Separate() bool { return f.Image != nil && f.Image.Device != f.Node.Device }

// PodFiles is what a pod takes.
type PodFiles struct {
	Containers map[string]ContainerFiles
	Volumes    []VolumeFiles
	// Ephemeral is all that counts against limits of ephemeral-storage: writable
	// layers, logs, volumes on the node's disk that end with the pod, and the rest of
	// the pod's own folder.
	Ephemeral TreeUsage
}

// ContainerFiles is what a container takes. Rootfs is nil if the runtime doesn't say.
type ContainerFiles struct {
	ID     string // as in the pod's status
	Rootfs *TreeUsage
	Logs   TreeUsage
}

// VolumeFiles is a volume that takes room of its own.
type VolumeFiles struct {
	Name string
	// Claim is the PersistentVolumeClaim, empty if it is none.
	Claim string
	Space
	// Local says that it counts as ephemeral storage: not in memory, not a claim's.
	Local bool
}

// Files counts, unless that was done within FreshFiles.
func (c *Collector) Files(ctx context.Context) (*Files, error) {
	return c.filesWithin(ctx, c.FreshFiles, nil)
}

// FilesOf counts what the pods take that only names, and no others, now. The
// file systems as wholes are in it, too.
func (c *Collector) FilesOf(ctx context.Context, only func(uid string) bool) (*Files, error) {
	return c.countFiles(ctx, only)
}

func (c *Collector) filesWithin(ctx context.Context, age time.Duration, only func(string) bool) (*Files, error) {
	c.filesMu.Lock()
	defer c.filesMu.Unlock()
	f := c.files
	if f == nil || time.Since(f.taken) >= age {
		f, err := c.countFiles(ctx, only)
		if err == nil {
			c.files = f
		}
		return f, err
	}
	// What has come since is counted now, so that no container is without its figures.
	fresh := map[string]bool{}
	for _, pod := range c.Pods() {
		if !f.has(&pod) {
			fresh[pod.UID] = true
		}
	}
	if time.Since(f.layered) >= c.Fresh {
		f = f.withLayers(c.askStats(ctx))
		c.files = f
	}
	if len(fresh) == 0 {
		return f, nil
	}
	more, err := c.countFiles(ctx, func(uid string) bool { return fresh[uid] })
	if err != nil {
		return nil, err
	}
	whole := *f
	whole.Pods = maps.Clone(f.Pods)
	maps.Copy(whole.Pods, more.Pods)
	c.files = &whole
	return c.files, nil
}

// withLayers is f with the writable layers as the runtime says now, which costs no
// walk through folders.
func (f *Files) withLayers(told map[string]*runtimeapi.ContainerStats) *Files {
	out := *f
	out.layered, out.Pods = time.Now(), make(map[string]PodFiles, len(f.Pods))
	for uid, p := range f.Pods {
		p.Containers = maps.Clone(p.Containers)
		for name, one := range p.Containers {
			_, id, _ := strings.Cut(one.ID, "://")
			w := told[id].GetWritableLayer()
			if w == nil {
				continue
			}
			now := TreeUsage{w.GetUsedBytes().GetValue(), w.GetInodesUsed().GetValue()}
			if old := one.Rootfs; old != nil {
				p.Ephemeral.Bytes -= min(old.Bytes, p.Ephemeral.Bytes)
				p.Ephemeral.Inodes -= min(old.Inodes, p.Ephemeral.Inodes)
			}
			p.Ephemeral.add(now)
			one.Rootfs = &now
			p.Containers[name] = one
		}
		out.Pods[uid] = p
	}
	return &out
}

// has says whether all that runs of a pod was counted.
func (f *Files) has(pod *Pod) bool {
	known, ok := f.Pods[pod.UID]
	if !ok {
		return false
	}
	for _, st := range pod.Status.ContainerStatuses {
		if one, there := known.Containers[st.Name]; st.State.Running != nil && (!there || one.ID != st.ContainerID) {
			return false
		}
	}
	return true
}

func (c *Collector) countFiles(ctx context.Context, only func(string) bool) (*Files, error) {
	ctx, cancel := context.WithTimeout(ctx, filesTimeout)
	defer cancel()
	f := &Files{At: c.Now(), taken: time.Now(), layered: time.Now(), Pods: map[string]PodFiles{}}
	var err error
	if f.Node, err = FileSystem(c.DataDir); err != nil {
		return nil, err
	}
	f.Image, f.Container = c.imageFs(ctx)
	told := c.askStats(ctx)
	for _, pod := range c.Pods() {
		if only != nil && !only(pod.UID) {
			continue
		}
		f.Pods[pod.UID] = c.podFiles(ctx, &pod, told)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// imageFs asks the runtime where images lie and what they take, and the kernel
// for the rest.
func (c *Collector) imageFs(ctx context.Context) (image, container *Space) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.Runtime.ImageFsInfo(call, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		c.Log.Info("the runtime doesn't say where its images are", "err", err)
		return nil, nil
	}
	space := func(list []*runtimeapi.FilesystemUsage) *Space {
		for _, u := range list {
			s, err := FileSystem(u.GetFsId().GetMountpoint())
			if err != nil {
				continue
			}
			s.Used, s.InodesUse = u.GetUsedBytes().GetValue(), u.GetInodesUsed().GetValue()
			return &s
		}
		return nil
	}
	image = space(resp.GetImageFilesystems())
	if container = space(resp.GetContainerFilesystems()); container == nil && image != nil {
		same := *image
		container = &same
	}
	return image, container
}

func (c *Collector) podFiles(ctx context.Context, pod *Pod, told map[string]*runtimeapi.ContainerStats) PodFiles {
	out := PodFiles{Containers: map[string]ContainerFiles{}}
	tree := func(path string) TreeUsage {
		u, err := Tree(ctx, path)
		if err != nil && ctx.Err() == nil {
			c.Log.Info("a pod's folder can't be counted", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		}
		return u
	}
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			_, id, _ := strings.Cut(list[i].ContainerID, "://")
			one := ContainerFiles{ID: list[i].ContainerID, Logs: tree(filepath.Join(pod.LogDir, list[i].Name))}
			out.Ephemeral.add(one.Logs)
			if w := told[id].GetWritableLayer(); w != nil {
				one.Rootfs = &TreeUsage{w.GetUsedBytes().GetValue(), w.GetInodesUsed().GetValue()}
				out.Ephemeral.add(*one.Rootfs)
			}
			out.Containers[list[i].Name] = one
		}
	}
	out.Volumes = c.volumes(ctx, pod, tree)
	for _, v := range out.Volumes {
		if v.Local {
			out.Ephemeral.add(TreeUsage{v.Used, v.InodesUse})
		}
	}
	// Hosts file, termination messages and the like.
	entries, _ := os.ReadDir(pod.Dir)
	for _, e := range entries {
		if e.Name() != "volumes" && e.Name() != "volume-subpaths" {
			out.Ephemeral.add(tree(filepath.Join(pod.Dir, e.Name())))
		}
	}
	return out
}

// volumes looks at what is below volumes/PLUGIN/NAME, where a kubelet has them.
// Drivers' volumes are the drivers' to count, wherever they lie.
func (c *Collector) volumes(ctx context.Context, pod *Pod, tree func(string) TreeUsage) []VolumeFiles {
	var spec *v1.Pod
	if pod.Spec != nil {
		spec, _ = pod.Spec()
	}
	var out []VolumeFiles
	if pod.Driven != nil {
		for _, v := range pod.Driven(ctx) {
			one := VolumeFiles{Space: v.Space}
			one.Name, one.Claim = claimOf(spec, cmp.Or(v.Name, v.PersistentVolume))
			out = append(out, one)
		}
	}
	base := filepath.Join(pod.Dir, "volumes")
	plugins, err := os.ReadDir(base)
	if err != nil {
		return out
	}
	home, _ := FileSystem(pod.Dir)
	for _, plugin := range plugins {
		if plugin.Name() == "kubernetes.io~csi" {
			continue
		}
		names, _ := os.ReadDir(filepath.Join(base, plugin.Name()))
		for _, name := range names {
			path := filepath.Join(base, plugin.Name(), name.Name())
			one := VolumeFiles{Name: name.Name()}
			claimed := plugin.Name() == "kubernetes.io~local-volume"
			if claimed {
				one.Name, one.Claim = claimOf(spec, name.Name())
			}
			space, err := FileSystem(path)
			if err != nil {
				continue
			}
			one.Space = space
			if !claimed || space.Device == home.Device {
				used := tree(path)
				one.Used, one.InodesUse = used.Bytes, used.Inodes
			}
			one.Local = !claimed && space.Device == home.Device
			out = append(out, one)
		}
	}
	return out
}

// claimOf finds which of a pod's volumes a folder is: it is named after the
// volume or, for a claim, after the PersistentVolume, which the pod doesn't name.
func claimOf(pod *v1.Pod, folder string) (name, claim string) {
	if pod == nil {
		return folder, ""
	}
	last, n := "", 0
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		of := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			of = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			of = pod.Name + "-" + v.Name
		}
		if v.Name == folder {
			return folder, of
		}
		if of != "" {
			last, n, name = of, n+1, v.Name
		}
	}
	if n == 1 {
		return name, last
	}
	return folder, ""
}
