package fleet

// What a node says of its volumes and devices in annotations of the Node that it reports.
// The hub makes API objects of them and doesn't store them.
const (
	// AnnotationCSIDrivers is a JSON list of CSIDriver: those registered on the node.
	AnnotationCSIDrivers = "coracle.dev/csi-drivers"
	// AnnotationExpanded is a JSON list of ExpandedClaim.
	AnnotationExpanded = "coracle.dev/expanded-claims"
	// AnnotationGoneDrivers is a JSON list of names: DRA drivers that were on the node
	// and stay away, whose devices must not be allocated any more.
	AnnotationGoneDrivers = "coracle.dev/gone-dra-drivers"
)

// CSIDriver is a driver on a node, for its CSINode.
type CSIDriver struct {
	Name   string `json:"name"`
	NodeID string `json:"nodeID"`
	// Limit is how many volumes of it fit on the node, 0 if it doesn't say.
	Limit        int64    `json:"limit,omitempty"`
	TopologyKeys []string `json:"topologyKeys,omitempty"`
}

// ExpandedClaim is a claim whose volume the node has grown, or tried to.
type ExpandedClaim struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Bytes     int64  `json:"bytes"`
	// Error says why the volume could not be grown; empty: it was.
	Error string `json:"error,omitempty"`
	// Infeasible says that the node won't try this size again.
	Infeasible bool `json:"infeasible,omitempty"`
}
