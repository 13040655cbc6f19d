package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	restful "github.com/emicklei/go-restful/v3"
	apiextensionshelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextensionslisters "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	crdopenapi "k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	utilopenapi "k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/component-base/version"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kube-openapi/pkg/aggregator"
	builder2 "k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"

	"github.com/coracle-edge/coracle/controlplane/apiserver/nodemetrics"
)

// keepDocument is how long a built OpenAPI v2 document is kept. It takes some
// 30 MiB, half a second to build, and is asked for in bursts or never.
const keepDocument = 10 * time.Second

// openAPI serves /openapi/v2 and /openapi/v3. Upstream builds every document at
// start and keeps it; here each is built when it is asked for.
type openAPI struct {
	auth        *authentication
	webServices map[string]*restful.WebService // by root path without the slash
	crds        apiextensionslisters.CustomResourceDefinitionLister
	remote      *remoteOpenAPI
	// hash of all built-in v3 documents: they change with the program only.
	hash string

	mu       sync.Mutex // building is expensive: one at a time
	v2       http.Handler
	v2Hash   string
	v2Expiry *time.Timer
}

func (s *Server) installOpenAPI(auth *authentication, kube *genericapiserver.GenericAPIServer, crds *apiextensionsapiserver.CustomResourceDefinitions,
	agg *aggregatorapiserver.APIAggregator, services webhook.ServiceResolver,
) {
	o := &openAPI{
		auth:        auth,
		webServices: map[string]*restful.WebService{},
		crds:        crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister(),
		remote:      newRemoteOpenAPI(agg.APIRegistrationInformers.Apiregistration().V1().APIServices().Lister(), services, s.cfg),
	}
	info := version.Get()
	o.hash = fmt.Sprintf("%X", sha256.Sum256([]byte(info.GitVersion+info.GitCommit+info.BuildDate)))
	for _, server := range []*genericapiserver.GenericAPIServer{kube, crds.GenericAPIServer, agg.GenericAPIServer} {
		for _, ws := range server.Handler.GoRestfulContainer.RegisteredWebServices() {
			if root := strings.Trim(ws.RootPath(), "/"); o.webServices[root] == nil {
				o.webServices[root] = ws
			}
		}
	}
	paths := s.outermost.Handler.NonGoRestfulMux
	paths.Handle("/openapi/v2", http.HandlerFunc(o.serveV2))
	paths.Handle("/openapi/v3", http.HandlerFunc(o.serveIndex))
	paths.HandlePrefix("/openapi/v3/", http.HandlerFunc(o.serveV3))
}

// definitions are upstream's, without what disabled features would show.
func definitions() openapicommon.GetOpenAPIDefinitions {
	return utilopenapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
}

func namer() *openapinamer.DefinitionNamer {
	return openapinamer.NewDefinitionNamer(legacyscheme.Scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme, nodemetrics.NewScheme())
}

// openAPIV3 is a configuration for the few kinds of one scheme.
func openAPIV3(get openapicommon.GetOpenAPIDefinitions, scheme *runtime.Scheme) *openapicommon.OpenAPIV3Config {
	c := genericapiserver.DefaultOpenAPIV3Config(utilopenapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(get), openapinamer.NewDefinitionNamer(scheme))
	c.Info.Title, c.Info.Version = "Kubernetes", version.Get().GitVersion
	return c
}

// established are the CRDs that are served.
func (o *openAPI) established() []*apiextensionsv1.CustomResourceDefinition {
	all, _ := o.crds.List(labels.Everything()) // a lister of a cache doesn't fail
	all = slices.DeleteFunc(slices.Clone(all), func(crd *apiextensionsv1.CustomResourceDefinition) bool {
		return !apiextensionshelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established)
	})
	slices.SortFunc(all, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func hashCRDs(crds []*apiextensionsv1.CustomResourceDefinition) string {
	h := sha256.New()
	for _, crd := range crds {
		fmt.Fprintf(h, "%s %s %d\n", crd.Name, crd.UID, crd.Generation)
	}
	return fmt.Sprintf("%X", h.Sum(nil))
}

func (o *openAPI) serveV2(w http.ResponseWriter, req *http.Request) {
	h, err := o.document(req)
	if err != nil {
		http.Error(w, fmt.Sprintf("OpenAPI v2: %v", err), http.StatusInternalServerError)
		return
	}
	h.ServeHTTP(w, req)
}

// document returns a handler of the v2 document as of now.
func (o *openAPI) document(req *http.Request) (http.Handler, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	crds := o.established()
	remote := o.remote.v2(req.Context())
	hash := hashCRDs(crds) + remote.hash
	if o.v2 == nil || o.v2Hash != hash {
		doc, err := o.buildV2(crds)
		if err != nil {
			return nil, err
		}
		for _, r := range remote.specs {
			if err := aggregator.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(doc, r); err != nil {
				return nil, err
			}
		}
		m := mux.NewPathRecorderMux("openapi")
		handler.NewOpenAPIService(doc).RegisterOpenAPIVersionedService("/openapi/v2", m)
		o.v2, o.v2Hash = m, hash
	}
	if o.v2Expiry != nil {
		o.v2Expiry.Stop()
	}
	o.v2Expiry = time.AfterFunc(keepDocument, o.drop)
	return o.v2, nil
}

func (o *openAPI) drop() {
	o.mu.Lock()
	o.v2, o.v2Hash = nil, ""
	o.mu.Unlock()
	debug.FreeOSMemory()
}

func (o *openAPI) buildV2(crds []*apiextensionsv1.CustomResourceDefinition) (*spec.Swagger, error) {
	config := genericapiserver.DefaultOpenAPIConfig(definitions(), namer())
	config.Info.Title, config.Info.Version = "Kubernetes", version.Get().GitVersion
	o.auth.openAPI(config, nil)
	secure(config)
	var all []*restful.WebService
	for _, ws := range o.webServices {
		all = append(all, ws)
	}
	slices.SortFunc(all, func(a, b *restful.WebService) int { return strings.Compare(a.RootPath(), b.RootPath()) })
	doc, err := builder2.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(all), config)
	if err != nil {
		return nil, err
	}
	doc.Definitions = handler.PruneDefaults(doc.Definitions)
	var more []*spec.Swagger
	for _, crd := range crds {
		for _, v := range crd.Spec.Versions {
			if !v.Served {
				continue
			}
			s, err := crdopenapi.BuildOpenAPIV2(crd, v.Name, crdopenapi.Options{V2: true, IncludeSelectableFields: true})
			if err != nil {
				continue // as upstream: a schema that can't be published hides nobody else's
			}
			s.Definitions = handler.PruneDefaults(s.Definitions)
			more = append(more, s)
		}
	}
	return crdopenapi.MergeSpecs(doc, more...)
}

// secure says that every operation wants one of the known credentials, as
// upstream's configuration does when it is completed.
func secure(config *openapicommon.Config) {
	for name := range *config.SecurityDefinitions {
		config.DefaultSecurity = append(config.DefaultSecurity, map[string][]string{name: {}})
	}
	config.CommonResponses = map[int]spec.Response{
		http.StatusUnauthorized: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}},
	}
}

// index maps the path of each v3 document, such as apis/apps/v1, to its hash.
func (o *openAPI) index() map[string]string {
	hashes := map[string]string{}
	for root := range o.webServices {
		hashes[root] = o.hash
	}
	groups := map[string][]*apiextensionsv1.CustomResourceDefinition{}
	for _, crd := range o.established() {
		for _, v := range crd.Spec.Versions {
			if v.Served {
				path := "apis/" + crd.Spec.Group + "/" + v.Name
				groups[path] = append(groups[path], crd)
			}
		}
	}
	for path, crds := range groups {
		hashes[path] = hashCRDs(crds)
	}
	return hashes
}

func (o *openAPI) serveIndex(w http.ResponseWriter, req *http.Request) {
	out := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for path, hash := range o.index() {
		out.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: "/openapi/v3/" + path + "?hash=" + hash}
	}
	for path, url := range o.remote.v3(req.Context()) {
		out.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: url}
	}
	data, err := json.Marshal(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Etag", fmt.Sprintf("%q", fmt.Sprintf("%X", sha256.Sum256(data))))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

func (o *openAPI) serveV3(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/openapi/v3/")
	hash, ok := o.index()[path]
	if !ok {
		o.remote.serveV3(w, req, path)
		return
	}
	if asked := req.URL.Query().Get("hash"); asked != "" && asked != hash {
		http.Redirect(w, req, "/openapi/v3/"+path+"?hash="+hash, http.StatusMovedPermanently)
		return
	}
	doc, err := o.buildV3(path)
	if err != nil {
		http.Error(w, fmt.Sprintf("OpenAPI v3 of %s: %v", path, err), http.StatusInternalServerError)
		return
	}
	writeV3(w, req, doc, hash)
}

func (o *openAPI) buildV3(path string) (*spec3.OpenAPI, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ws := o.webServices[path]; ws != nil {
		config := genericapiserver.DefaultOpenAPIV3Config(definitions(), namer())
		config.Info.Title, config.Info.Version = "Kubernetes", version.Get().GitVersion
		o.auth.openAPI(nil, config)
		for name := range config.SecuritySchemes {
			config.DefaultSecurity = append(config.DefaultSecurity, map[string][]string{name: {}})
		}
		config.CommonResponses = map[int]*spec3.Response{
			http.StatusUnauthorized: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}},
		}
		return builder3.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices([]*restful.WebService{ws}), config)
	}
	var docs []*spec3.OpenAPI
	for _, crd := range o.established() {
		for _, v := range crd.Spec.Versions {
			if v.Served && path == "apis/"+crd.Spec.Group+"/"+v.Name {
				if doc, err := crdopenapi.BuildOpenAPIV3(crd, v.Name, crdopenapi.Options{IncludeSelectableFields: true}); err == nil {
					docs = append(docs, doc)
				}
			}
		}
	}
	return crdopenapi.MergeSpecsV3(docs...)
}

// writeV3 answers in protobuf if that is accepted before JSON.
func writeV3(w http.ResponseWriter, req *http.Request, doc *spec3.OpenAPI, hash string) {
	data, err := json.Marshal(doc)
	contentType := "application/json"
	accept := req.Header.Get("Accept")
	if p := strings.Index(accept, "openapi.spec.v3"); err == nil && p >= 0 {
		if j := strings.Index(accept, "application/json"); j < 0 || p < j {
			data, err = handler3.ToV3ProtoBinary(data)
			contentType = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Etag", fmt.Sprintf("%q", hash))
	h.Set("Vary", "Accept")
	if req.URL.Query().Get("hash") != "" {
		h.Set("Cache-Control", "public, immutable")
		h.Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}
