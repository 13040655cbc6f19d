package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
	aggregatorv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorhelper "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	aggregatorlisters "k8s.io/kube-aggregator/pkg/client/listers/apiregistration/v1"
	"k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/openapiconv"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	// remoteFresh is how long an aggregated server's document is believed.
	remoteFresh   = time.Minute
	remoteTimeout = 5 * time.Second
	remoteLimit   = 32 << 20 // bytes of one document
)

// remoteOpenAPI fetches the documents of aggregated API servers.
type remoteOpenAPI struct {
	services aggregatorlisters.APIServiceLister
	resolver webhook.ServiceResolver
	cfg      Config

	mu    sync.Mutex
	cache map[string]remoteEntry // by APIService name and path
}

type remoteEntry struct {
	data    []byte
	err     error
	fetched time.Time
}

type remoteV2 struct {
	specs []*spec.Swagger
	hash  string
}

func newRemoteOpenAPI(services aggregatorlisters.APIServiceLister, resolver webhook.ServiceResolver, cfg Config) *remoteOpenAPI {
	return &remoteOpenAPI{services: services, resolver: resolver, cfg: cfg, cache: map[string]remoteEntry{}}
}

// available are the APIServices that are served elsewhere and answer.
func (r *remoteOpenAPI) available() []*aggregatorv1.APIService {
	all, _ := r.services.List(labels.Everything())
	all = slices.DeleteFunc(slices.Clone(all), func(s *aggregatorv1.APIService) bool {
		return s.Spec.Service == nil || !aggregatorhelper.IsAPIServiceConditionTrue(s, aggregatorv1.Available)
	})
	slices.SortFunc(all, func(a, b *aggregatorv1.APIService) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func groupPath(s *aggregatorv1.APIService) string {
	return "apis/" + s.Spec.Group + "/" + s.Spec.Version
}

func (r *remoteOpenAPI) v2(ctx context.Context) remoteV2 {
	var out remoteV2
	h := sha256.New()
	for _, s := range r.available() {
		data, err := r.fetch(ctx, s, "/openapi/v2")
		if err != nil {
			r.cfg.Logger.Warn("OpenAPI of an aggregated API", "apiservice", s.Name, "err", err)
			continue
		}
		doc := &spec.Swagger{}
		if err := json.Unmarshal(data, doc); err != nil {
			r.cfg.Logger.Warn("OpenAPI of an aggregated API", "apiservice", s.Name, "err", err)
			continue
		}
		fmt.Fprintf(h, "%s %x\n", s.Name, sha256.Sum256(data))
		out.specs = append(out.specs, aggregator.FilterSpecByPathsWithoutSideEffects(doc, []string{"/" + groupPath(s) + "/"}))
	}
	if len(out.specs) > 0 {
		out.hash = fmt.Sprintf("%X", h.Sum(nil))
	}
	return out
}

// v3 maps the paths of the v3 documents to URLs of ours.
func (r *remoteOpenAPI) v3(ctx context.Context) map[string]string {
	out := map[string]string{}
	for _, s := range r.available() {
		path := groupPath(s)
		data, err := r.fetch(ctx, s, "/openapi/v3")
		index := handler3.OpenAPIV3Discovery{}
		if err == nil {
			err = json.Unmarshal(data, &index)
		}
		if entry, ok := index.Paths[path]; err == nil && ok {
			out[path] = entry.ServerRelativeURL
			continue
		}
		if data, err := r.fetch(ctx, s, "/openapi/v2"); err == nil { // a server that knows only v2
			out[path] = fmt.Sprintf("/openapi/v3/%s?hash=%X", path, sha256.Sum256(data))
		}
	}
	return out
}

// serveV3 answers for the one APIService that owns path.
func (r *remoteOpenAPI) serveV3(w http.ResponseWriter, req *http.Request, path string) {
	for _, s := range r.available() {
		if groupPath(s) != path {
			continue
		}
		doc := &spec3.OpenAPI{}
		data, err := r.fetch(req.Context(), s, "/openapi/v3/"+path)
		if err == nil {
			err = json.Unmarshal(data, doc)
		} else if data, err = r.fetch(req.Context(), s, "/openapi/v2"); err == nil {
			old := &spec.Swagger{}
			if err = json.Unmarshal(data, old); err == nil {
				doc = openapiconv.ConvertV2ToV3(old)
			}
		}
		if err != nil {
			http.Error(w, fmt.Sprintf("OpenAPI of APIService %s: %v", s.Name, err), http.StatusServiceUnavailable)
			return
		}
		writeV3(w, req, doc, req.URL.Query().Get("hash"))
		return
	}
	http.NotFound(w, req)
}

func (r *remoteOpenAPI) fetch(ctx context.Context, s *aggregatorv1.APIService, path string) ([]byte, error) {
	key := s.Name + " " + string(s.UID) + " " + path
	r.mu.Lock()
	entry, ok := r.cache[key]
	for k, e := range r.cache {
		if time.Since(e.fetched) > remoteFresh {
			delete(r.cache, k)
		}
	}
	r.mu.Unlock()
	if ok && time.Since(entry.fetched) < remoteFresh {
		return entry.data, entry.err
	}
	entry.data, entry.err = r.get(ctx, s, path)
	entry.fetched = time.Now()
	r.mu.Lock()
	r.cache[key] = entry
	r.mu.Unlock()
	return entry.data, entry.err
}

func (r *remoteOpenAPI) get(ctx context.Context, s *aggregatorv1.APIService, path string) ([]byte, error) {
	port := int32(443)
	if s.Spec.Service.Port != nil {
		port = *s.Spec.Service.Port
	}
	where, err := r.resolver.ResolveEndpoint(s.Spec.Service.Namespace, s.Spec.Service.Name, port)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(&rest.Config{
		TLSClientConfig: rest.TLSClientConfig{
			Insecure:   s.Spec.InsecureSkipTLSVerify,
			ServerName: s.Spec.Service.Name + "." + s.Spec.Service.Namespace + ".svc",
			CAData:     s.Spec.CABundle,
			CertFile:   r.cfg.PKI.ProxyClientCertFile,
			KeyFile:    r.cfg.PKI.ProxyClientKeyFile,
		},
		Dial:    r.cfg.DialCluster,
		Timeout: remoteTimeout,
		WrapTransport: func(rt http.RoundTripper) http.RoundTripper {
			return transport.NewAuthProxyRoundTripper("system:aggregator", "", []string{"system:authenticated"}, nil, rt)
		},
	})
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.Scheme+"://"+where.Host+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, remoteLimit))
}
