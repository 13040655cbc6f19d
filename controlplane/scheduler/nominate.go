package scheduler

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// nominations are pods that wait for room which is being made for them on a
// node. The room is kept from pods of no higher priority. The zero value is
// empty.
type nominations struct {
	mu   sync.Mutex
	pods map[types.UID]nomination
}

type nomination struct {
	pod  *framework.Pod
	node string
}

func (n *nominations) set(pod *framework.Pod, node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods == nil {
		n.pods = map[types.UID]nomination{}
	}
	n.pods[pod.UID] = nomination{pod, node}
}

// remove says whether the pod was nominated.
func (n *nominations) remove(uid types.UID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.pods[uid]
	delete(n.pods, uid)
	return ok
}

// node returns where the pod is nominated, "" if nowhere.
func (n *nominations) node(uid types.UID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods[uid].node
}

// on returns the pods nominated to a node, or to any if it is "", whose room pod must
// leave alone.
func (n *nominations) on(node string, pod *framework.Pod) (others []*framework.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid, o := range n.pods {
		if (node == "" || o.node == node) && uid != pod.UID && o.pod.Priority >= pod.Priority {
			others = append(others, o.pod)
		}
	}
	return others
}
