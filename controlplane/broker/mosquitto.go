package broker

import (
	"fmt"
	"strings"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// MosquittoACL is fleet.Allowed as an acl_file of mosquitto. It need not change
// when nodes join.
func MosquittoACL() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Coracle's fleet link. The user is the common name of the client's certificate.\n")
	fmt.Fprintf(&b, "user %s\n", fleet.HubUser)
	fmt.Fprintf(&b, "topic read %s\n", fleet.TopicFilter(fleet.DirUp))
	fmt.Fprintf(&b, "topic read %s\n", fleet.TopicFilter(fleet.DirWill))
	fmt.Fprintf(&b, "topic write %s\n\n", fleet.TopicFilter(fleet.DirDown))
	for _, d := range []fleet.Direction{fleet.DirUp, fleet.DirWill} {
		fmt.Fprintf(&b, "pattern write %s\n", strings.Replace(fleet.TopicFilter(d), "+", "%u", 1))
	}
	fmt.Fprintf(&b, "pattern read %s\n", strings.Replace(fleet.TopicFilter(fleet.DirDown), "+", "%u", 1))
	return b.String()
}

// MosquittoFiles names the files that mosquitto needs.
type MosquittoFiles struct {
	CA, Cert, Key string // of the listener; CA also verifies clients
	ACL           string // with MosquittoACL in it
}

// Limits that mosquitto has for all clients alike, and of which the hub's is the
// only one that comes near: when a broker comes back all nodes say Hello at once.
// What doesn't fit is not only dropped: mosquitto 2.0 ends the connection of the
// node that sent it.
const (
	hubInflight    = 256
	hubQueue       = 4 * defaultNodes // messages
	hubQueuedBytes = 64 << 20
)

// MosquittoConf is a mosquitto.conf that serves the fleet link and nothing else.
func MosquittoConf(address string, port int, files MosquittoFiles) string {
	return fmt.Sprintf(`# Coracle's fleet link
per_listener_settings false
listener %d %s
cafile %s
certfile %s
keyfile %s
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file %s

# Nothing is kept for who isn't connected.
persistence false
persistent_client_expiration 1h
queue_qos0_messages false
max_queued_messages %d
max_queued_bytes %d
max_inflight_messages %d
max_packet_size %d
max_keepalive %d
retain_available false
sys_interval 0
`, port, address, files.CA, files.Cert, files.Key, files.ACL, hubQueue, hubQueuedBytes, hubInflight, maxPacket, maxKeepalive)
}
