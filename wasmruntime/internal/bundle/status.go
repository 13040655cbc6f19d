package bundle

// Status is the one line that a runner writes to its starter's pipe.
type Status struct {
	// Kind is empty if all went well, else one of the Kind constants.
	Kind    string `json:"kind,omitempty"`
	Message string `json:"message,omitempty"`
	// Walls are the parts of the jail that stand, and with "no " in front
	// those that don't, with the reason.
	Walls []string `json:"walls,omitempty"`
}

// Kinds of failure.
const (
	KindCache       = "cache"       // the compiled module is torn: compile again
	KindStart       = "start"       // a mount, socket, namespace or user
	KindMalformed   = "malformed"   // by the admission check
	KindUnsupported = "unsupported" //
	KindImport      = "import"      //
	KindOutbound    = "outbound"    // it imports sockets and may not have them
	KindTooLarge    = "toolarge"    //
	KindCompile     = "compile"     // the engine refuses it
)
