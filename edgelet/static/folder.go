package static

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// DefaultReread is how often the folder is read although nothing was seen to
// change in it.
const DefaultReread = 20 * time.Second

// quiet is how long a folder must be left alone before it is read: editors and
// copies write in several steps.
const quiet = 100 * time.Millisecond

// Folder is a folder of static pods, or one file that holds one.
type Folder struct {
	Path, NodeName string
	// Set is called with all pods whenever they changed, and once at the start.
	Set func([]pods.Object)
	Log *slog.Logger
	// Reread is [DefaultReread] if 0.
	Reread time.Duration
	// Now dates what is seen; time.Now if nil.
	Now func() time.Time
}

// Run watches the folder until ctx ends. It makes the folder, so that it can be
// watched; where it can't, a folder that isn't there has no pods.
func (f *Folder) Run(ctx context.Context) error {
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	if f.Reread == 0 {
		f.Reread = DefaultReread
	}
	if f.Now == nil {
		f.Now = time.Now
	}
	_ = os.MkdirAll(f.Path, 0o755)
	last := &state{complaints: map[string]string{}, pods: map[string]pods.Object{}}
	changed, stop := watch(f.Path) // before reading: nothing falls between
	defer func() { stop() }()
	f.read(last, true)
	ticker := time.NewTicker(f.Reread)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if changed == nil { // it wasn't there when it was to be watched
				stop()
				changed, stop = watch(f.Path)
			}
		case _, ok := <-changed:
			if !ok {
				stop()
				changed, stop = nil, func() {}
				continue
			}
			select {
			case <-time.After(quiet):
			case <-ctx.Done():
				return nil
			}
		}
		f.read(last, false)
	}
}

// state is what was last read.
type state struct {
	digest     string
	complaints map[string]string // by file: the last error, so that it is said once
	pods       map[string]pods.Object
}

// read hands over the pods if they changed. A file that can't be read or is no
// pod keeps the pod it was, if any: a slip of the editor stops nothing.
func (f *Folder) read(last *state, first bool) {
	files, err := f.files()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Log.Error("the folder of static pods can't be read; its pods stay as they are", "folder", f.Path, "err", err)
		if !first {
			return
		}
	}
	now := map[string]pods.Object{}
	names := map[string]string{}
	for _, path := range files {
		o, err := f.load(path, last)
		if err == nil {
			if other, twice := names[o.Namespace+"/"+o.Name]; twice {
				err = errors.New("the same pod as in " + other)
			}
		}
		if err != nil {
			if last.complaints[path] != err.Error() {
				f.Log.Error("a static pod is left as it was", "file", path, "err", err)
				last.complaints[path] = err.Error()
			}
			if old, ok := last.pods[path]; ok {
				now[path] = old
			}
			continue
		}
		delete(last.complaints, path)
		names[o.Namespace+"/"+o.Name] = path
		now[path] = o
	}
	var list []pods.Object
	for _, o := range now {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b pods.Object) int { return strings.Compare(a.UID, b.UID) })
	h := sha256.New()
	for _, o := range list {
		h.Write([]byte(o.UID + o.Hash))
	}
	digest := hex.EncodeToString(h.Sum(nil))
	last.pods = now
	if first || digest != last.digest {
		last.digest = digest
		f.Set(list)
	}
}

// files are those of the folder that may hold pods.
func (f *Folder) files() ([]string, error) {
	if info, err := os.Stat(f.Path); err == nil && info.Mode().IsRegular() {
		return []string{f.Path}, nil
	}
	entries, err := os.ReadDir(f.Path)
	var out []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			out = append(out, filepath.Join(f.Path, e.Name()))
		}
	}
	return out, err
}

// firstSeen is when a pod was first read by this agent.
func (f *Folder) firstSeen(uid string, last *state) string {
	for _, o := range last.pods {
		if o.UID != uid {
			continue
		}
		if pod, err := kubeobj.Pod(o.Raw); err == nil && pod.Annotations[AnnotationSeen] != "" {
			return pod.Annotations[AnnotationSeen]
		}
	}
	return f.Now().Format(time.RFC3339Nano)
}

func (f *Folder) load(path string, last *state) (pods.Object, error) {
	info, err := os.Stat(path)
	if err != nil {
		return pods.Object{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > MaxFile {
		return pods.Object{}, errors.New("not a regular file of a sensible size")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return pods.Object{}, err
	}
	pod, err := Decode(data, path, f.NodeName)
	if err != nil {
		return pods.Object{}, err
	}
	pod.Annotations[AnnotationSeen] = f.firstSeen(string(pod.UID), last)
	raw, err := kubeobj.EncodePod(pod)
	if err != nil {
		return pods.Object{}, err
	}
	sum := sha256.Sum256(raw)
	return pods.Object{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID),
		Hash: hex.EncodeToString(sum[:]), Raw: raw, Static: true}, nil
}

// watch signals changes in a folder. It returns nil if the folder isn't there or
// the kernel has no watch left. The channel is closed when the folder goes.
func watch(dir string) (<-chan struct{}, func()) {
	if info, err := os.Stat(dir); err == nil && info.Mode().IsRegular() {
		dir = filepath.Dir(dir) // an editor puts another file in its place
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, func() {}
	}
	const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		_ = unix.Close(fd)
		return nil, func() {}
	}
	f := os.NewFile(uintptr(fd), "inotify") // non-blocking: Close ends Read
	ch := make(chan struct{}, 1)
	go func() {
		defer close(ch)
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			select {
			case ch <- struct{}{}:
			default:
			}
			if _, err := os.Stat(dir); err != nil {
				return
			}
		}
	}()
	return ch, func() {
		_ = f.Close()
		for range ch { // until the reader has ended
		}
	}
}
