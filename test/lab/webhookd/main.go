// Command webhookd is an admission webhook for tests: it serves HTTPS with the
// certificate and key of its environment (TLS_CERT, TLS_KEY, PEM) on :8443, and
// denies every object that has the label "deny". Without a certificate it serves
// HTTP, and says what it was asked for.
package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Request    *struct {
		UID    string `json:"uid"`
		Object struct {
			Metadata struct {
				Labels map[string]string `json:"labels"`
			} `json:"metadata"`
		} `json:"object"`
	} `json:"request,omitempty"`
	Response any `json:"response,omitempty"`
}

func main() {
	http.HandleFunc("POST /validate", func(w http.ResponseWriter, r *http.Request) {
		var in review
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Request == nil {
			http.Error(w, fmt.Sprint("not an AdmissionReview: ", err), http.StatusBadRequest)
			return
		}
		_, deny := in.Request.Object.Metadata.Labels["deny"]
		answer := map[string]any{"uid": in.Request.UID, "allowed": !deny}
		if deny {
			answer["status"] = map[string]any{"message": "this webhook runs in a pod, and denies it"}
		}
		_ = json.NewEncoder(w).Encode(review{APIVersion: in.APIVersion, Kind: in.Kind, Response: answer})
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s\n", r.Method, r.URL.Path) })
	server := &http.Server{Addr: ":8443"}
	err := server.ListenAndServe
	if cert := os.Getenv("TLS_CERT"); cert != "" {
		pair, bad := tls.X509KeyPair([]byte(cert), []byte(os.Getenv("TLS_KEY")))
		if bad != nil {
			fmt.Fprintln(os.Stderr, bad)
			os.Exit(1)
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
		err = func() error { return server.ListenAndServeTLS("", "") }
	}
	fmt.Fprintln(os.Stderr, err())
	os.Exit(1)
}
