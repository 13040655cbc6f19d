package nodemetrics

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/metrics/pkg/apis/metrics"
	"k8s.io/metrics/pkg/apis/metrics/install"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// NewScheme knows the group's kinds.
func NewScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	metav1.AddToGroupVersion(scheme, v1beta1.SchemeGroupVersion)
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	return scheme
}

// Group is metrics.k8s.io of the nodes and pods that the listers know.
func Group(source *Source, nodes corelisters.NodeLister, pods corelisters.PodLister) genericapiserver.APIGroupInfo {
	scheme := NewScheme()
	info := genericapiserver.NewDefaultAPIGroupInfo(metrics.GroupName, scheme, metav1.ParameterCodec, serializer.NewCodecFactory(scheme))
	info.VersionedResourcesStorageMap[v1beta1.SchemeGroupVersion.Version] = map[string]rest.Storage{
		"nodes": &nodeREST{source: source, nodes: nodes},
		"pods":  &podREST{source: source, nodes: nodes, pods: pods},
	}
	return info
}

// selectors of a list; a field selector knows metadata.name and metadata.namespace.
func selectors(options *metainternalversion.ListOptions) (labels.Selector, fields.Selector) {
	label, field := labels.Everything(), fields.Everything()
	if options != nil && options.LabelSelector != nil {
		label = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		field = options.FieldSelector
	}
	return label, field
}

func usage(nanoCores, workingSet uint64) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(min(nanoCores, 1<<62)), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(min(workingSet, 1<<62)), resource.BinarySI),
	}
}

func window(u *fleet.Usage) (metav1.Time, metav1.Duration) {
	return metav1.NewTime(time.UnixMilli(u.UnixMilli)), metav1.Duration{Duration: time.Duration(u.WindowMilli) * time.Millisecond}
}

// nodeREST serves nodes.
type nodeREST struct {
	source *Source
	nodes  corelisters.NodeLister
}

var (
	_ rest.Lister               = (*nodeREST)(nil)
	_ rest.Getter               = (*nodeREST)(nil)
	_ rest.Scoper               = (*nodeREST)(nil)
	_ rest.SingularNameProvider = (*nodeREST)(nil)
	_ rest.Lister               = (*podREST)(nil)
	_ rest.Getter               = (*podREST)(nil)
	_ rest.Scoper               = (*podREST)(nil)
	_ rest.SingularNameProvider = (*podREST)(nil)
	_ rest.KindProvider         = (*podREST)(nil)
	_ rest.KindProvider         = (*nodeREST)(nil)
	_ rest.TableConvertor       = (*podREST)(nil)
)

func (*nodeREST) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (*nodeREST) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (*nodeREST) Destroy()                {}
func (*nodeREST) Kind() string            { return "NodeMetrics" }
func (*nodeREST) NamespaceScoped() bool   { return false }
func (*nodeREST) GetSingularName() string { return "" }

// List implements rest.Lister.
func (r *nodeREST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	label, field := selectors(options)
	all, err := r.nodes.List(label)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(n *corev1.Node) bool { return !field.Matches(fields.Set{"metadata.name": n.Name}) })
	slices.SortFunc(all, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	used := r.source.Of(ctx, all)
	out := &metrics.NodeMetricsList{Items: []metrics.NodeMetrics{}}
	for _, n := range all {
		if u := used[n.Name]; u != nil {
			out.Items = append(out.Items, nodeMetrics(n, u))
		}
	}
	return out, nil
}

// Get implements rest.Getter.
func (r *nodeREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	n, err := r.nodes.Get(name)
	if err != nil {
		return nil, apierrors.NewNotFound(metrics.Resource("nodes"), name)
	}
	u := r.source.Of(ctx, []*corev1.Node{n})[name]
	if u == nil {
		return nil, apierrors.NewNotFound(metrics.Resource("nodes"), name)
	}
	out := nodeMetrics(n, u)
	return &out, nil
}

func nodeMetrics(n *corev1.Node, u *fleet.Usage) metrics.NodeMetrics {
	m := metrics.NodeMetrics{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: metav1.Now()}, Usage: usage(u.NanoCores, u.WorkingSet)}
	m.Timestamp, m.Window = window(u)
	return m
}

// ConvertToTable implements rest.TableConvertor.
func (r *nodeREST) ConvertToTable(_ context.Context, object runtime.Object, _ runtime.Object) (*metav1.Table, error) {
	items := []metrics.NodeMetrics{}
	switch o := object.(type) {
	case *metrics.NodeMetrics:
		items = append(items, *o)
	case *metrics.NodeMetricsList:
		items = o.Items
	default:
		return nil, fmt.Errorf("a table of %T", object)
	}
	t := newTable()
	for i := range items {
		t.add(&items[i], items[i].Name, items[i].Usage, items[i].Window)
	}
	return t.table, nil
}

// podREST serves pods.
type podREST struct {
	source *Source
	nodes  corelisters.NodeLister
	pods   corelisters.PodLister
}

func (*podREST) New() runtime.Object     { return &metrics.PodMetrics{} }
func (*podREST) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (*podREST) Destroy()                {}
func (*podREST) Kind() string            { return "PodMetrics" }
func (*podREST) NamespaceScoped() bool   { return true }
func (*podREST) GetSingularName() string { return "" }

// List implements rest.Lister: only the nodes that such pods run on are asked.
func (r *podREST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	label, field := selectors(options)
	all, err := r.pods.Pods(genericapirequest.NamespaceValue(ctx)).List(label)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(p *corev1.Pod) bool {
		return p.Spec.NodeName == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed ||
			!field.Matches(fields.Set{"metadata.name": p.Name, "metadata.namespace": p.Namespace})
	})
	slices.SortFunc(all, func(a, b *corev1.Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return &metrics.PodMetricsList{Items: r.of(ctx, all)}, nil
}

// Get implements rest.Getter.
func (r *podREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	namespace := genericapirequest.NamespaceValue(ctx)
	p, err := r.pods.Pods(namespace).Get(name)
	if err == nil && p.Spec.NodeName != "" {
		if all := r.of(ctx, []*corev1.Pod{p}); len(all) == 1 {
			return &all[0], nil
		}
	}
	return nil, apierrors.NewNotFound(metrics.Resource("pods"), namespace+"/"+name)
}

// of has the pods of which their nodes say something.
func (r *podREST) of(ctx context.Context, pods []*corev1.Pod) []metrics.PodMetrics {
	names := map[string]bool{}
	var nodes []*corev1.Node
	for _, p := range pods {
		if names[p.Spec.NodeName] {
			continue
		}
		names[p.Spec.NodeName] = true
		if n, err := r.nodes.Get(p.Spec.NodeName); err == nil {
			nodes = append(nodes, n)
		}
	}
	type key struct{ namespace, name, node string }
	said := map[key]*fleet.PodUsage{}
	used := r.source.Of(ctx, nodes)
	for node, u := range used {
		for i := range u.Pods {
			said[key{u.Pods[i].Namespace, u.Pods[i].Name, node}] = &u.Pods[i]
		}
	}
	out := []metrics.PodMetrics{}
	for _, p := range pods {
		s := said[key{p.Namespace, p.Name, p.Spec.NodeName}]
		// A node may speak of the pod's predecessor of the same name. A static pod has
		// another UID in the API.
		if s == nil || s.UID != string(p.UID) && p.Annotations[corev1.MirrorPodAnnotationKey] == "" {
			continue
		}
		m := metrics.PodMetrics{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, CreationTimestamp: metav1.Now()}}
		m.Timestamp, m.Window = window(used[p.Spec.NodeName])
		for _, c := range s.Containers {
			m.Containers = append(m.Containers, metrics.ContainerMetrics{Name: c.Name, Usage: usage(c.NanoCores, c.WorkingSet)})
		}
		out = append(out, m)
	}
	return out
}

// ConvertToTable implements rest.TableConvertor.
func (r *podREST) ConvertToTable(_ context.Context, object runtime.Object, _ runtime.Object) (*metav1.Table, error) {
	items := []metrics.PodMetrics{}
	switch o := object.(type) {
	case *metrics.PodMetrics:
		items = append(items, *o)
	case *metrics.PodMetricsList:
		items = o.Items
	default:
		return nil, fmt.Errorf("a table of %T", object)
	}
	t := newTable()
	for i := range items {
		sum := corev1.ResourceList{}
		for _, c := range items[i].Containers {
			for name, q := range c.Usage {
				total := sum[name]
				total.Add(q)
				sum[name] = total
			}
		}
		t.add(&items[i], items[i].Name, sum, items[i].Window)
	}
	return t.table, nil
}

// table is what `kubectl get` shows, with metrics-server's columns.
type table struct{ table *metav1.Table }

func newTable() *table {
	return &table{&metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "cpu", Type: "string", Format: "quantity"},
		{Name: "memory", Type: "string", Format: "quantity"},
		{Name: "Window", Type: "string", Format: "duration"},
	}}}
}

func (t *table) add(object runtime.Object, name string, used corev1.ResourceList, window metav1.Duration) {
	t.table.Rows = append(t.table.Rows, metav1.TableRow{
		Cells:  []any{name, used.Cpu().String(), used.Memory().String(), window.Duration.String()},
		Object: runtime.RawExtension{Object: object},
	})
}
