package state

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// What of a report can't wait, as a text that changes when that does. A report
// whose text is that of the last one that was answered for says nothing urgent.

// podUrgency is, of a core/v1 PodStatus: phase (1), readiness (2: type 1, status
// 2) and address (6), by which the cluster sends requests to the pod.
func podUrgency(r *fleet.PodReport) string {
	var phase, ready, ip string
	fields(r.GetStatus(), func(number protowire.Number, value []byte) {
		switch number {
		case 1:
			phase = string(value)
		case 2:
			if kind, status := typeAndStatus(value); kind == "Ready" {
				ready = status
			}
		case 6:
			ip = string(value)
		}
	})
	return fmt.Sprintf("%q %q %q %t", phase, ready, ip, r.GetGone())
}

// nodeUrgency is, of a core/v1 Node, the status of each condition (status 3,
// conditions 4: type 1, status 2), and which DRA drivers are gone (metadata 1,
// annotations 12: key 1, value 2), because what they offer is still allocated.
// Labels, images, addresses and figures can wait.
func nodeUrgency(r *fleet.NodeReport) string {
	var out []string
	fields(r.GetNode(), func(number protowire.Number, value []byte) {
		if number == 1 {
			fields(value, func(number protowire.Number, value []byte) {
				if key, names := typeAndStatus(value); number == 12 && key == fleet.AnnotationGoneDrivers {
					out = append(out, fmt.Sprintf("gone=%q", names))
				}
			})
		}
		if number != 3 {
			return
		}
		fields(value, func(number protowire.Number, value []byte) {
			if number == 4 {
				kind, status := typeAndStatus(value)
				out = append(out, fmt.Sprintf("%q=%q", kind, status))
			}
		})
	})
	return strings.Join(out, " ")
}

// typeAndStatus reads the first two fields, as text.
func typeAndStatus(message []byte) (kind, status string) {
	fields(message, func(number protowire.Number, value []byte) {
		switch number {
		case 1:
			kind = string(value)
		case 2:
			status = string(value)
		}
	})
	return kind, status
}

// fields calls each with the fields of a message that have a length; what can't
// be read ends it.
func fields(message []byte, each func(protowire.Number, []byte)) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		message = message[n:]
		if kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(message)
			if n < 0 {
				return
			}
			each(number, value)
			message = message[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return
		}
		message = message[n:]
	}
}
