package crishim_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// BenchmarkWasmPod is a pod's short life: sandbox, container, its first line
// of output in the log, removal.
func BenchmarkWasmPod(b *testing.B) {
	n := newNode(b, nil)
	img := n.image(lab.CNCF(probeModule(b)))
	var toOutput time.Duration
	for i := range b.N {
		begin := time.Now()
		sb, pod := n.sandbox(fmt.Sprintf("bench%d", i), hostNetwork)
		id := n.start(sb, pod, containerConfig(img, "hello", "--", "sleep"))
		path := n.status(id).GetLogPath()
		for {
			if fi, err := os.Stat(path); err == nil && fi.Size() > 0 {
				break
			}
			time.Sleep(200 * time.Microsecond)
		}
		toOutput += time.Since(begin)
		if _, err := n.RemovePodSandbox(b.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(toOutput.Microseconds())/float64(b.N)/1000, "ms-to-output")
}
