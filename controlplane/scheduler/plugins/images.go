package plugins

import (
	"context"
	"math"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// MaxImageBytes is the size, per container, from which on an image that is
// there already counts in full.
const MaxImageBytes = 1000 << 20

// Images prefers nodes that have the pod's images. Each image counts with its
// size, scaled down by how few nodes have it: otherwise the first node that
// pulls an image would draw all its pods. The square root is ours: upstream's
// linear scale with its floor of 23 MB is blind to Wasm modules, and on a slow
// link a small image saved is time saved too.
type Images struct{}

func (Images) Name() string { return "ImageLocality" }

func (Images) PrepareScore(_ context.Context, pod *framework.Pod, cluster *framework.Cluster, _ []*framework.NodeInfo) framework.Score {
	var s imageScore
	add := func(image string) {
		if image == "" {
			return
		}
		name := imageName(image)
		if n := cluster.ImageNodes(name); n > 0 {
			s.images = append(s.images, wantedImage{name, float64(n) / float64(len(cluster.Nodes))})
		}
	}
	for i := range pod.Spec.InitContainers {
		add(pod.Spec.InitContainers[i].Image)
	}
	for i := range pod.Spec.Containers {
		add(pod.Spec.Containers[i].Image)
	}
	for i := range pod.Spec.Volumes {
		if image := pod.Spec.Volumes[i].Image; image != nil {
			add(image.Reference)
		}
	}
	if len(s.images) == 0 {
		return nil
	}
	s.full = float64(MaxImageBytes) * float64(len(pod.Spec.InitContainers)+len(pod.Spec.Containers))
	return s
}

// Score is that of a node in a cluster of one.
func (i Images) Score(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) int64 {
	nodes := []*framework.NodeInfo{node}
	if s := i.PrepareScore(ctx, pod, framework.NewCluster(nodes, nil), nodes); s != nil {
		return s.Score(ctx, pod, node)
	}
	return 0
}

type wantedImage struct {
	name   string
	spread float64 // share of nodes that have it
}

type imageScore struct {
	images []wantedImage
	full   float64
}

func (imageScore) Name() string { return Images{}.Name() }

func (s imageScore) Score(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) int64 {
	var sum float64
	for _, want := range s.images {
		sum += float64(imageBytes(node.Node, want.name)) * want.spread
	}
	return int64(math.Sqrt(min(1, sum/s.full)) * float64(framework.MaxScore))
}

func imageBytes(node *v1.Node, name string) int64 {
	for i := range node.Status.Images {
		if slices.Contains(node.Status.Images[i].Names, name) {
			return node.Status.Images[i].SizeBytes
		}
	}
	return 0
}

// imageName is how a node lists an image: with a tag.
func imageName(image string) string {
	if strings.LastIndex(image, ":") <= strings.LastIndex(image, "/") {
		return image + ":latest"
	}
	return image
}
