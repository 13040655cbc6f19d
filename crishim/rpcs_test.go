package crishim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/streaming"
	"github.com/coracle-edge/coracle/test/lab"
)

// serve is the node as its clients have it: by gRPC, with a streaming server.
func (n *node) serve(t *testing.T) *grpc.ClientConn {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n.n++
	sock := filepath.Join(filepath.Dir(n.cfg.StateDir), fmt.Sprintf("cri%d.sock", n.n))
	l, err := crishim.ListenUnix("unix://" + sock)
	if err != nil {
		t.Fatal(err)
	}
	sl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams, err := streaming.New(sl, n.Service)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- n.Serve(ctx, l, streams) }()
	go func() { done <- streams.Run(ctx) }()
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return conn
}

// rpc is one RPC of the CRI, as its descriptor has it.
type rpc struct {
	name    string // /SERVICE/METHOD
	in, out protoreflect.MessageType
	stream  bool
}

// rpcs are all RPCs of CRI v1 as of the cri-api that is linked.
func rpcs(t *testing.T) []rpc {
	t.Helper()
	var out []rpc
	for _, name := range []string{runtimeapi.RuntimeService_ServiceDesc.ServiceName, runtimeapi.ImageService_ServiceDesc.ServiceName} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			m := methods.Get(i)
			in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
			if err != nil {
				t.Fatal(err)
			}
			res, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, rpc{name: fmt.Sprintf("/%s/%s", name, m.Name()), in: in, out: res, stream: m.IsStreamingServer()})
		}
	}
	if len(out) < 41 {
		t.Fatalf("%d RPCs only", len(out))
	}
	return out
}

// call makes one call and returns its error; of a stream it reads what there is.
func (r rpc) call(ctx context.Context, conn *grpc.ClientConn, req proto.Message) error {
	if !r.stream {
		return conn.Invoke(ctx, r.name, req, r.out.New().Interface())
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, r.name)
	if err != nil {
		return err
	}
	if err := errors.Join(s.SendMsg(req), s.CloseSend()); err != nil {
		return err
	}
	for {
		if err := s.RecvMsg(r.out.New().Interface()); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// variants of a request: empty, full, and full but for one sub-message each, at
// every depth; list elements and map values count as such. known says what a
// field of that name is to hold.
func (r rpc) variants(known map[string]string) map[string]proto.Message {
	out := map[string]proto.Message{"empty": r.in.New().Interface()}
	full := r.in.New()
	fill(full, known, 0)
	out["full"] = full.Interface()
	var paths [][]int
	subMessages(full, nil, &paths)
	for _, p := range paths {
		m := proto.Clone(full.Interface())
		name := clearAt(m.ProtoReflect(), p)
		out["without "+name] = m
	}
	return out
}

const maxDepth = 8

func fill(m protoreflect.Message, known map[string]string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v := m.Mutable(f).Map().NewValue()
				m.Mutable(f).Map().Set(protoreflect.ValueOfString("key").MapKey(), v)
			}
		case f.Message() == nil:
			if v, ok := known[string(f.Name())]; ok && f.Kind() == protoreflect.StringKind && !f.IsList() {
				m.Set(f, protoreflect.ValueOfString(v))
			}
		case f.IsList():
			if depth < maxDepth {
				fill(m.Mutable(f).List().AppendMutable().Message(), known, depth+1)
			}
		case depth < maxDepth:
			fill(m.Mutable(f).Message(), known, depth+1)
		}
	}
}

// subMessages lists the paths, by field number, of what can be left out.
func subMessages(m protoreflect.Message, at []int, out *[][]int) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil || f.IsMap() {
			return true
		}
		here := append(slices.Clone(at), int(f.Number()))
		*out = append(*out, here)
		if f.IsList() {
			subMessages(v.List().Get(0).Message(), here, out)
		} else {
			subMessages(v.Message(), here, out)
		}
		return true
	})
}

func clearAt(m protoreflect.Message, path []int) string {
	f := m.Descriptor().Fields().ByNumber(protoreflect.FieldNumber(path[0]))
	switch {
	case len(path) == 1:
		m.Clear(f)
		return string(f.Name())
	case f.IsList():
		return string(f.Name()) + "[0]." + clearAt(m.Mutable(f).List().Get(0).Message(), path[1:])
	default:
		return string(f.Name()) + "." + clearAt(m.Mutable(f).Message(), path[1:])
	}
}

// callAll calls every RPC with every variant. A panic of the service ends this
// process. What isn't implemented must say what to use in its place.
func callAll(t *testing.T, n *node, known func(*testing.T) map[string]string) {
	conn := n.serve(t)
	var names map[string]string
	for _, r := range rpcs(t) {
		t.Run(filepath.Base(r.name), func(t *testing.T) {
			n.in(t)
			if !n.runs(names["container_id"]) {
				names = known(t)
			}
			variants := r.variants(names)
			for _, name := range slices.Sorted(maps.Keys(variants)) {
				limit := 10 * time.Second
				if strings.HasSuffix(r.name, "GetContainerEvents") {
					limit = 100 * time.Millisecond // never ends by itself
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				err := r.call(ctx, conn, variants[name])
				cancel()
				st := status.Convert(err)
				switch {
				case st.Code() == codes.Unimplemented && (strings.Contains(st.Message(), "not implemented") || strings.Contains(st.Message(), "unknown method") || len(st.Message()) < 40):
					t.Errorf("%s: it isn't implemented and doesn't say what to use: %q", name, st.Message())
				case st.Code() == codes.DeadlineExceeded && limit == 10*time.Second, st.Code() == codes.Unavailable && strings.Contains(st.Message(), "EOF"):
					t.Errorf("%s: %v", name, err)
				case st.Code() == codes.Unknown && !strings.Contains(st.Message(), " "):
					t.Errorf("%s: an error without words: %v", name, err)
				}
			}
		})
	}
}

// runs says whether a container is there and running, with its image.
func (n *node) runs(id string) bool {
	st, err := n.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil || st.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return false
	}
	img, err := n.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: st.GetStatus().GetImage()})
	return err == nil && img.GetImage() != nil
}

func TestEveryRPC(t *testing.T) {
	n := newNode(t, nil)
	callAll(t, n, func(t *testing.T) map[string]string {
		return things(t, n, n.image(lab.CNCF(probeModule(t))), hostNetwork)
	})
}

// things are a pod with a running container, to be named in a request.
func things(t *testing.T, n *node, img string, kind func(*runtimeapi.PodSandboxConfig)) map[string]string {
	t.Helper()
	n.n++
	pod := fmt.Sprint(n.n, "-") + strings.ToLower(strings.ReplaceAll(filepath.Base(t.Name()), "_", "-"))
	sb, cfg := n.sandbox(pod, kind)
	c := containerConfig(img, "sleep")
	if strings.Contains(img, "busybox") {
		c = shell(img, "sleep 1000")
	}
	c.Stdin = true
	id := n.start(sb, cfg, c)
	return map[string]string{"pod_sandbox_id": sb, "container_id": id, "image": img, "name": "made-" + pod, "uid": "uid-" + pod,
		"namespace": "default", "hostname": "h", "log_directory": filepath.Join(n.logs, pod), "log_path": "x.log", "runtime_handler": "wasm"}
}
