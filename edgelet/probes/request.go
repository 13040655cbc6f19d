package probes

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// version is the part of Kubernetes' version that probes and hooks call
// themselves by.
const version = "1.36"

// maxRedirects is Go's own limit and upstream's.
const maxRedirects = 10

// NewRequest is the request of a probe or of a lifecycle hook. host is the pod's
// address, used if the action names none; purpose ("probe", "lifecycle") becomes
// part of the User-Agent. It is upstream's NewRequestForHTTPGetAction.
func NewRequest(a *v1.HTTPGetAction, c *v1.Container, host, purpose string) (*http.Request, error) {
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	if a.Host != "" {
		host = a.Host
	}
	port, err := ResolvePort(a.Port, c)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path} // passed on as it is: too late to refuse it
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range a.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "kube-"+purpose+"/"+version)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// ResolvePort is the number of a port that may be named by a container's.
func ResolvePort(p intstr.IntOrString, c *v1.Container) (int, error) {
	port := p.IntValue()
	if p.Type == intstr.String {
		named := false
		for _, have := range c.Ports {
			if have.Name == p.StrVal {
				port, named = int(have.ContainerPort), true
				break
			}
		}
		if !named {
			var err error
			if port, err = strconv.Atoi(p.StrVal); err != nil { // it may be a number written as text
				return port, err
			}
		}
	}
	if port <= 0 || port > 65535 {
		return port, fmt.Errorf("invalid port number: %v", port)
	}
	return port, nil
}

// dialer closes what it opened at once: a probe leaves no TIME_WAIT behind for
// each of its runs.
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
		})
	}}
}

// NewTransport is for probes and hooks: it verifies no certificate, uses no proxy
// and keeps no connection.
func NewTransport() *http.Transport {
	return &http.Transport{
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives:   true,
		DisableCompression:  true,
		DialContext:         dialer().DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		// Few pods answer with more, and each connection holds both.
		ReadBufferSize: 2 << 10, WriteBufferSize: 1 << 10,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// sameHost follows redirects that stay on the host, and takes others for the
// answer.
func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}
