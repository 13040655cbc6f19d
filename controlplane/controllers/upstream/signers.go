package upstream

import (
	"context"
	"strings"
	"sync"

	certificates "k8s.io/api/certificates/v1"
	certificatesbeta "k8s.io/api/certificates/v1beta1"
)

// The signers that CertificateSigningRequests may ask for, upstream's four.
const (
	v1KubeletServing = certificates.KubeletServingSignerName
	v1KubeletClient  = certificates.KubeAPIServerClientKubeletSignerName
	v1APIClient      = certificates.KubeAPIServerClientSignerName
	v1LegacyUnknown  = certificatesbeta.LegacyUnknownSignerName
)

func short(signer string) string { return strings.TrimPrefix(signer, "kubernetes.io/") }

// runAll runs n functions until all have returned.
func runAll(ctx context.Context, n int, run func(ctx context.Context, i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { run(ctx, i) })
	}
	wg.Wait()
}
