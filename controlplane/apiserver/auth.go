package apiserver

import (
	"context"
	"fmt"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	"k8s.io/apiserver/pkg/authentication/request/x509"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	authzunion "k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/features"
	kubeauthenticator "k8s.io/kubernetes/pkg/kubeapiserver/authenticator"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/node"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/coracle-edge/coracle/controlplane/apiserver/inprocess"
)

// frontProxyName is the only certificate name that may set request headers.
const frontProxyName = "front-proxy-client"

// authentication is who a request is from: a client of this process, a front
// proxy, a client certificate, a bearer token. There is no anonymous access.
type authentication struct {
	authenticator.Request
	clientCA      *dynamiccertificates.DynamicFileCAContent
	requestHeader *authenticatorfactory.RequestHeaderConfig
	audiences     authenticator.Audiences
	issuer        serviceaccount.TokenGenerator
	publicKeys    serviceaccount.PublicKeysGetter
	openAPI       func(*openapicommon.Config, *openapicommon.OpenAPIV3Config)
}

func newAuthentication(ctx context.Context, c *Config, client kubernetes.Interface, inf informers.SharedInformerFactory,
	config func(string, ...string) *rest.Config,
) (*authentication, error) {
	a := &authentication{audiences: authenticator.Audiences{c.Issuer}}
	var err error
	if a.clientCA, err = dynamiccertificates.NewDynamicCAContentFromFile("client-ca-bundle", c.PKI.ClientCAFile); err != nil {
		return nil, fmt.Errorf("client CA: %w", err)
	}
	frontProxyCA, err := dynamiccertificates.NewDynamicCAContentFromFile("request-header", c.PKI.RequestHeaderCAFile)
	if err != nil {
		return nil, fmt.Errorf("request header CA: %w", err)
	}
	a.requestHeader = &authenticatorfactory.RequestHeaderConfig{
		CAContentProvider:   frontProxyCA,
		UsernameHeaders:     headerrequest.StaticStringSlice{"X-Remote-User"},
		UIDHeaders:          headerrequest.StaticStringSlice{"X-Remote-Uid"},
		GroupHeaders:        headerrequest.StaticStringSlice{"X-Remote-Group"},
		ExtraHeaderPrefixes: headerrequest.StaticStringSlice{"X-Remote-Extra-"},
		AllowedClientNames:  headerrequest.StaticStringSlice{frontProxyName},
	}
	if a.issuer, err = serviceaccount.JWTTokenGenerator(c.Issuer, c.PKI.ServiceAccountKey); err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	keys := append([]any{c.PKI.ServiceAccountKey.Public()}, c.PKI.MoreServiceAccountKeys...)
	if a.publicKeys, err = serviceaccount.StaticPublicKeysGetter(keys); err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	core := inf.Core().V1()
	objects := serviceaccountcontroller.NewGetterFromClient(client,
		core.Secrets().Lister(), core.ServiceAccounts().Lister(), core.Pods().Lister(), core.Nodes().Lister())
	upstream, _, definitions, schemes, err := kubeauthenticator.Config{
		ServiceAccountLookup:           true,
		ServiceAccountIssuers:          []string{c.Issuer},
		APIAudiences:                   a.audiences,
		RequestHeaderConfig:            a.requestHeader,
		ServiceAccountPublicKeysGetter: a.publicKeys,
		ServiceAccountTokenGetter:      objects,
		SecretsWriter:                  client.CoreV1(),
	}.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	var more Extension
	if c.Extend != nil {
		if more, err = c.Extend(Host{ClientConfig: config, Objects: objects, Audiences: a.audiences}); err != nil {
			return nil, fmt.Errorf("authentication: %w", err)
		}
	}
	certificates := authenticator.Request(x509.NewDynamic(a.clientCA.VerifyOptions, x509.CommonNameUserConversion))
	if more.Certificates != nil {
		certificates = more.Certificates(certificates)
	}
	ours := []authenticator.Request{certificates}
	if len(more.Tokens) > 0 {
		tokens := tokenunion.New(more.Tokens...)
		ours = append(ours, bearertoken.New(tokens), websocket.NewProtocolAuthenticator(tokens))
	}
	remote := union.New(group.NewAuthenticatedGroupAdder(union.New(ours...)), upstream)
	if more.Requests != nil {
		remote = more.Requests(remote)
	}
	a.Request = tracedAuthenticator{union.New(group.NewAuthenticatedGroupAdder(inprocess.Authenticator{}), remote)}
	a.openAPI = func(v2 *openapicommon.Config, v3 *openapicommon.OpenAPIV3Config) {
		if v2 != nil {
			v2.SecurityDefinitions = definitions
		}
		if v3 != nil {
			v3.SecuritySchemes = schemes
		}
	}
	return a, nil
}

// newAuthorizer is upstream's order: the masters' group, Node, RBAC.
func newAuthorizer(inf informers.SharedInformerFactory) (authorizer.Authorizer, authorizer.RuleResolver) {
	graph := node.NewGraph()
	node.RegisterMetrics()
	slices := inf.Resource().V1().ResourceSlices()
	if !utilfeature.DefaultFeatureGate.Enabled(features.DynamicResourceAllocation) {
		slices = nil
	}
	node.AddGraphEventHandlers(graph, inf.Core().V1().Nodes(), inf.Core().V1().Pods(), inf.Core().V1().PersistentVolumes(),
		inf.Storage().V1().VolumeAttachments(), slices, nil)
	nodes := node.NewAuthorizer(graph, nodeidentifier.NewDefaultNodeIdentifier(), bootstrappolicy.NodeRules())
	roles := rbac.New(
		&rbac.RoleGetter{Lister: inf.Rbac().V1().Roles().Lister()},
		&rbac.RoleBindingLister{Lister: inf.Rbac().V1().RoleBindings().Lister()},
		&rbac.ClusterRoleGetter{Lister: inf.Rbac().V1().ClusterRoles().Lister()},
		&rbac.ClusterRoleBindingLister{Lister: inf.Rbac().V1().ClusterRoleBindings().Lister()},
	)
	return authzunion.New(authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup), nodes, roles),
		authzunion.NewRuleResolvers(nodes, roles)
}
