package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shelf is a store of images on a disk of 1000 bytes, of which others take some.
type shelf struct {
	images     []*runtimeapi.Image
	containers []*runtimeapi.Container
	others     uint64
	refuse     string // an image that can't be removed
	lists      int
	use        Use
}

func (s *shelf) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	s.lists++
	return &runtimeapi.ListImagesResponse{Images: slices.Clone(s.images)}, nil
}

func (s *shelf) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if r.Image.Image == s.refuse {
		return nil, errors.New("in use")
	}
	s.images = slices.DeleteFunc(s.images, func(i *runtimeapi.Image) bool { return i.Id == r.Image.Image })
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (s *shelf) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/i"}}}}, nil
}

func (s *shelf) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.containers}, nil
}

func (s *shelf) space(string) (uint64, uint64, error) {
	used := s.others
	for _, i := range s.images {
		used += i.Size
	}
	return 1000, 1000 - used, nil
}

func (s *shelf) names() string {
	var out []string
	for _, i := range s.images {
		out = append(out, strings.TrimPrefix(i.Id, "sha256:"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func image(name string, size uint64, tags ...string) *runtimeapi.Image {
	return &runtimeapi.Image{Id: "sha256:" + name, Size: size, RepoTags: tags}
}

func collector(t *testing.T, s *shelf, change func(*CollectorConfig)) *Collector {
	t.Helper()
	cfg := CollectorConfig{Store: s, Use: func() Use { return s.use }, Space: s.space, MinAge: time.Minute}
	if change != nil {
		change(&cfg)
	}
	c, err := NewCollector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhatWasUsedLongestAgoGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{others: 400, use: Use{Complete: true}, images: []*runtimeapi.Image{
			image("old", 100, "r/old:1"), image("newer", 100, "r/newer:1"), image("desired", 100, "docker.io/library/desired:latest"),
			image("running", 100), image("pinned", 50, "pause:1")}}
		s.images[4].Pinned = true
		s.use.Images = []string{"desired", "r/newer:1"}
		s.containers = []*runtimeapi.Container{{ImageRef: "sha256:running"}}
		c := collector(t, s, nil)
		collect := func(want string) {
			t.Helper()
			if err := c.Collect(t.Context()); err != nil && !errors.Is(err, ErrNotEnough) {
				t.Fatal(err)
			}
			if got := s.names(); got != want {
				t.Errorf("left %q, want %q", got, want)
			}
		}
		all := "desired newer old pinned running"
		collect(all) // 85 %, and too young
		time.Sleep(2 * time.Minute)
		s.use.Images = s.use.Images[:1]
		// 850 of 1000: at the high threshold. 50 bytes are to go: the one never used.
		collect("desired newer pinned running")
		s.others = 550 // 90 %
		collect("desired pinned running")
		s.others = 740
		if err := c.Collect(t.Context()); !errors.Is(err, ErrNotEnough) {
			t.Errorf("nothing left to remove: %v", err)
		}
		collect("desired pinned running")
		s.use.Complete = false
		s.containers = nil
		if err := c.DeleteUnusedImages(t.Context()); err != nil || s.names() != "desired pinned running" {
			t.Errorf("not all orders are known, and %q is left (%v)", s.names(), err)
		}
		s.use.Complete = true
		if err := c.DeleteUnusedImages(t.Context()); err != nil || s.names() != "desired pinned" {
			t.Errorf("left %q, %v", s.names(), err)
		}
	})
}

func TestAnEmptyDiskIsLeftAlone(t *testing.T) {
	s := &shelf{others: 100, use: Use{Complete: true}, images: []*runtimeapi.Image{image("a", 1)}}
	c := collector(t, s, func(c *CollectorConfig) { c.MinAge = 0 })
	if err := c.Collect(t.Context()); err != nil || s.lists != 0 || s.names() != "a" {
		t.Errorf("%d lists, left %q, %v", s.lists, s.names(), err)
	}
}

// A kubelet's events of its node: when removing images isn't enough, when that fails
// twice in a row, and when the disk says that it has no room at all.
func TestEventsOfTheCollection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{others: 900, use: Use{Complete: true}, images: []*runtimeapi.Image{image("a", 10)}}
		var (
			mu    sync.Mutex
			told  []string
			empty atomic.Bool
		)
		c := collector(t, s, func(c *CollectorConfig) {
			c.MinAge = 0
			c.Event = func(kind, reason, message string) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, kind+" "+reason+": "+message)
			}
			c.Space = func(path string) (uint64, uint64, error) {
				if empty.Load() {
					return 0, 0, nil
				}
				return s.space(path)
			}
		})
		seen := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(told)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		want := []string{"Warning FreeDiskSpaceFailed: Insufficient free disk space on the node's image filesystem (91% of 1000 B used). " +
			"Failed to free sufficient space by deleting unused images (freed 10 bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data."}
		synctest.Wait()
		events := seen()
		if !slices.Equal(events, want) {
			t.Errorf("events %q, want %q", events, want)
		}
		time.Sleep(gcPeriod)
		synctest.Wait()
		events = seen()
		if len(events) != 3 || !strings.HasPrefix(events[2], "Warning ImageGCFailed: "+ErrNotEnough.Error()) {
			t.Errorf("after the second failure: %q", events)
		}
		empty.Store(true)
		time.Sleep(gcPeriod)
		synctest.Wait()
		events = seen()
		if len(events) != 5 || events[3] != "Warning InvalidDiskCapacity: invalid capacity 0 on image filesystem" {
			t.Errorf("a disk without a size: %q", events)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSize(t *testing.T) {
	for in, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 32 << 30: "32.0 GiB", 3 << 40: "3.0 TiB", 3 << 50: "3072.0 TiB"} {
		if got := size(in); got != want {
			t.Errorf("%d: %q, want %q", in, got, want)
		}
	}
}

func TestOneThatStaysKeepsNobodyElse(t *testing.T) {
	s := &shelf{use: Use{Complete: true}, images: []*runtimeapi.Image{image("a", 1), image("b", 1)}, refuse: "sha256:a"}
	c := collector(t, s, func(c *CollectorConfig) { c.MinAge = 0 })
	if err := c.DeleteUnusedImages(t.Context()); err == nil || s.names() != "a" {
		t.Errorf("left %q, %v", s.names(), err)
	}
}

// A new version that can't run is rolled back, maybe without a network.
func TestTheVersionBeforeIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{images: []*runtimeapi.Image{image("v1", 1, "r/app:1"), image("v2", 1, "r/app:2"), image("v3", 1, "r/app:3")}}
		memory := filepath.Join(t.TempDir(), "images.json")
		settings := func(c *CollectorConfig) { c.MinAge, c.Memory = 0, memory }
		c := collector(t, s, settings)
		runs := func(image string, good bool) {
			t.Helper()
			s.use = Use{Complete: true, Images: []string{image}, Workloads: []Workload{{Key: "default/ReplicaSet/app", Images: []string{image}, Good: good}}}
			if err := c.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		delete := func(want string) {
			t.Helper()
			if err := c.DeleteUnusedImages(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := s.names(); got != want {
				t.Errorf("left %q, want %q", got, want)
			}
		}
		runs("r/app:1", true)
		// The old pod is gone, the new one isn't here yet.
		s.use = Use{Complete: true, Images: []string{"r/app:2"}}
		delete("v1 v2")
		runs("r/app:2", false)
		delete("v1 v2")
		s.images = append(s.images, image("v3", 1, "r/app:3"))
		runs("r/app:2", true)
		s.use.Images = append(s.use.Images, "r/app:3") // ordered
		delete("v1 v2 v3")
		runs("r/app:3", false)
		c = collector(t, s, settings) // the agent restarts
		delete("v1 v2 v3")
		runs("r/app:3", true)
		delete("v2 v3")
		// The workload is gone for good.
		s.use = Use{Complete: true}
		delete("v2 v3")
		time.Sleep(absentFor + time.Minute)
		if err := c.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		delete("")
		if raw, err := os.ReadFile(memory); err != nil || string(raw) != "{}" {
			t.Errorf("remembered %s, %v", raw, err)
		}
	})
}

func TestUnusedImagesGrowTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{use: Use{Complete: true}, images: []*runtimeapi.Image{image("a", 1)}}
		c := collector(t, s, func(c *CollectorConfig) { c.MaxAge = time.Hour })
		for want, after := range map[string]time.Duration{"a": 59 * time.Minute} {
			if err := c.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			if err := c.Collect(t.Context()); err != nil || s.names() != want {
				t.Errorf("left %q, %v", s.names(), err)
			}
		}
		time.Sleep(2 * time.Minute)
		if err := c.Collect(t.Context()); err != nil || s.names() != "" {
			t.Errorf("left %q, %v", s.names(), err)
		}
	})
}

func TestThresholdsOfImages(t *testing.T) {
	s := &shelf{}
	for _, bad := range [][2]int{{101, 80}, {85, 90}, {-1, -2}} {
		if _, err := NewCollector(CollectorConfig{Store: s, Use: func() Use { return Use{} }, Space: s.space, HighPercent: bad[0], LowPercent: bad[1]}); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestWorkloadKey(t *testing.T) {
	for _, c := range [][6]string{
		{"ns", "web-5d9-x", "ReplicaSet", "web-5d9", "5d9", "ns/ReplicaSet/web"},
		{"ns", "db-0", "StatefulSet", "db", "", "ns/StatefulSet/db"},
		{"ns", "alone", "", "", "", "ns/alone"},
	} {
		if got := WorkloadKey(c[0], c[1], c[2], c[3], c[4]); got != c[5] {
			t.Errorf("%q, want %q", got, c[5])
		}
	}
}

func FuzzFormer(f *testing.F) {
	f.Add([]byte(`{"ns/app":{"good":["r/app:1"],"before":null}}`))
	f.Add([]byte(`{"a":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		kept, err := decodeFormer(raw)
		if err != nil {
			return
		}
		for key, one := range kept {
			if one == nil {
				t.Errorf("%q is nothing", key)
			}
		}
	})
}
