package apiserver

import (
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver/nodelease"
	"github.com/coracle-edge/coracle/controlplane/datastore"
)

// ErrConfig is returned when the configuration can't be served.
var ErrConfig = errors.New("API server configuration")

// DefaultIssuer is the issuer of service account tokens, as upstream's installers have it.
const DefaultIssuer = "https://kubernetes.default.svc.cluster.local"

// OperationsPath is the prefix of what isn't the Kubernetes API: what operators do
// with the cluster itself. Such a request may take as long as it needs.
const OperationsPath = "/coracle/v1/"

// Config of a Server. Store, Listener and PKI are required.
type Config struct {
	// Store is where objects are; the caller opens and closes it.
	Store *datastore.Store
	// Listener accepts plain TCP; TLS is done by the server.
	Listener net.Listener
	// AdvertiseAddress goes into the endpoints of the `kubernetes` Service. If it is
	// unset or loopback, the address of the default route's interface is taken.
	AdvertiseAddress net.IP
	// APIServers is how many may share the store, one if zero: so many addresses are
	// kept in the endpoints of the `kubernetes` Service.
	APIServers int
	// ExternalHost is the name clients are told, the listener's address if empty.
	ExternalHost string
	PKI          PKI
	// ServiceCIDR is 10.43.0.0/16 if nil.
	ServiceCIDR *net.IPNet
	// Issuer of service account tokens, DefaultIssuer if empty.
	Issuer string
	// Extend adds to who is let in; may be nil. It is called once, while the server
	// is being assembled: what it makes may call the API later, not yet.
	Extend func(Host) (Extension, error)
	// DialNode connects to "NODE:port" for logs, exec, port-forward and the node
	// proxy. Nil dials the network.
	DialNode utilnet.DialFunc
	// DialCluster connects to pods and Services, for webhooks, aggregated APIs and
	// the pod and Service proxies. Nil dials the network.
	DialCluster utilnet.DialFunc
	// PodHost is the host under which DialCluster reaches the pod that has an address
	// on a node; nil: the address itself.
	PodHost func(ip, node string) string
	// Operations is served below OperationsPath, to who may use such a path: the
	// masters' group, and others by RBAC (nonResourceURLs). May be nil.
	Operations http.Handler
	// NodeLeases are served in kube-node-lease instead of stored ones; may be nil.
	NodeLeases nodelease.Source
	// Trace is told of the steps of pods; may be nil.
	Trace *trace.Recorder
	// Audit and AuditPolicy are optional.
	Audit       audit.Backend
	AuditPolicy audit.PolicyRuleEvaluator
	// SystemNamespaces are kept in existence besides upstream's.
	SystemNamespaces []string
	Logger           *slog.Logger
}

// Host is what an Extension may be built on.
type Host struct {
	// ClientConfig is Server.ClientConfig.
	ClientConfig func(user string, groups ...string) *rest.Config
	// Objects are service accounts, pods, Secrets and nodes, from memory where possible.
	Objects serviceaccount.ServiceAccountTokenGetter
	// Audiences are the API's own.
	Audiences authenticator.Audiences
}

// Extension is more of authentication.
type Extension struct {
	// Tokens authenticate bearer tokens that aren't service account tokens of the cluster's key.
	Tokens []authenticator.Token
	// Certificates wraps the authenticator of client certificates; may be nil.
	Certificates func(authenticator.Request) authenticator.Request
	// Requests wraps all authentication of requests that come over a network, the
	// two above included; may be nil.
	Requests func(authenticator.Request) authenticator.Request
}

// PKI are the files and keys of the server. Files are read again when they change.
type PKI struct {
	ServingCertFile, ServingKeyFile string
	// ClientCAFile verifies client certificates: CN is the user, O the groups.
	ClientCAFile string
	// RequestHeaderCAFile verifies front proxies, which may only be named front-proxy-client.
	RequestHeaderCAFile string
	// ProxyClientCertFile and ProxyClientKeyFile are shown to aggregated API servers and webhooks.
	ProxyClientCertFile, ProxyClientKeyFile string
	// Kubelet* are shown to, and expected of, nodes.
	KubeletClientCertFile, KubeletClientKeyFile, KubeletCAFile string
	// ServiceAccountKey signs service account tokens (RSA or ECDSA).
	ServiceAccountKey crypto.Signer
	// MoreServiceAccountKeys are public keys that are accepted besides its own.
	MoreServiceAccountKeys []any
}

func (c *Config) complete() error {
	if c.Store == nil || c.Listener == nil || c.PKI.ServiceAccountKey == nil {
		return fmt.Errorf("%w: Store, Listener and PKI are required", ErrConfig)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ServiceCIDR == nil {
		_, c.ServiceCIDR, _ = net.ParseCIDR("10.43.0.0/16")
	}
	if c.Issuer == "" {
		c.Issuer = DefaultIssuer
	}
	if c.DialNode == nil {
		c.DialNode = (&net.Dialer{}).DialContext
	}
	if c.DialCluster == nil {
		c.DialCluster = (&net.Dialer{}).DialContext
	}
	if ip := c.AdvertiseAddress; ip == nil || ip.IsLoopback() || ip.IsUnspecified() {
		// Endpoints may not be loopback addresses. Without any other there are none.
		c.AdvertiseAddress = nil
		if ip, err := utilnet.ResolveBindAddress(net.IPv4zero); err == nil && !ip.IsLoopback() {
			c.AdvertiseAddress = ip
		}
	}
	c.APIServers = max(c.APIServers, 1)
	if c.ExternalHost == "" {
		c.ExternalHost = c.Listener.Addr().String()
	}
	return nil
}
