package controllers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	batch "k8s.io/api/batch/v1"
	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/utils/ptr"
)

// jobOf is a Job spec whose pod succeeds at once.
func jobOf() batch.JobSpec {
	spec := batch.JobSpec{Template: template(nil, "exit0")}
	spec.Template.Spec.RestartPolicy = v1.RestartPolicyNever
	return spec
}

func finished(job *batch.Job) bool {
	return slices.ContainsFunc(job.Status.Conditions, func(c batch.JobCondition) bool {
		return c.Type == batch.JobComplete && c.Status == v1.ConditionTrue
	})
}

func TestCronJobMakesItsJob(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	cron, err := c.client.BatchV1().CronJobs(ns).Create(t.Context(), &batch.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "tide"}, Spec: batch.CronJobSpec{
		Schedule: "* * * * *", JobTemplate: batch.JobTemplateSpec{Spec: jobOf()},
	}}, metav1.CreateOptions{})
	must(t, err)
	// As if it had last run before the minute that has begun, so that this one is due now.
	cron.Status.LastScheduleTime = &metav1.Time{Time: time.Now().Add(-2 * time.Minute)}
	_, err = c.client.BatchV1().CronJobs(ns).UpdateStatus(t.Context(), cron, metav1.UpdateOptions{})
	must(t, err)
	eventually(t, "a Job of the CronJob's succeeds", func() error {
		jobs, err := c.client.BatchV1().Jobs(ns).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, job := range jobs.Items {
			if metav1.IsControlledBy(&job, cron) && finished(&job) {
				return nil
			}
		}
		return fmt.Errorf("%d Jobs, none of the CronJob's finished", len(jobs.Items))
	})
	eventually(t, "the CronJob knows", func() error {
		cron, err := c.client.BatchV1().CronJobs(ns).Get(t.Context(), "tide", metav1.GetOptions{})
		must(t, err)
		if cron.Status.LastSuccessfulTime == nil {
			return fmt.Errorf("status %+v", cron.Status)
		}
		return nil
	})
}

func TestFinishedJobIsDeletedAfterItsTTL(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	for name, ttl := range map[string]*int32{"kept": nil, "brief": ptr.To(int32(1))} {
		spec := jobOf()
		spec.TTLSecondsAfterFinished = ttl
		_, err := c.client.BatchV1().Jobs(ns).Create(t.Context(), &batch.Job{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
		must(t, err)
	}
	eventually(t, "the Job without a TTL finishes", func() error {
		job, err := c.client.BatchV1().Jobs(ns).Get(t.Context(), "kept", metav1.GetOptions{})
		must(t, err)
		if !finished(job) {
			return fmt.Errorf("status %+v", job.Status)
		}
		return nil
	})
	eventually(t, "the Job with a TTL of 1 s and its pod are deleted", func() error {
		if _, err := c.client.BatchV1().Jobs(ns).Get(t.Context(), "brief", metav1.GetOptions{}); gone(err) != nil {
			return gone(err)
		}
		if left := len(c.podsOf(t, ns, "batch.kubernetes.io/job-name=brief")); left > 0 {
			return fmt.Errorf("%d pods", left)
		}
		return nil
	})
	_, err := c.client.BatchV1().Jobs(ns).Get(t.Context(), "kept", metav1.GetOptions{})
	must(t, err)
}

// A node asks for a new client certificate with the one it has. Upstream signs for nodes that an administrator lets ask,
// and for nobody else.
func TestKubeletClientCertificateIsApprovedAndSigned(t *testing.T) {
	c := shared
	const node, other = "system:node:csr-board", "system:node:csr-stranger"
	binding, err := c.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-renew-"},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"},
		Subjects:   []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: node}},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		_ = c.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), binding.Name, metav1.DeleteOptions{})
	})
	eventually(t, "RBAC has heard of the binding", func() error {
		review, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorization.SubjectAccessReview{Spec: authorization.SubjectAccessReviewSpec{
			User: node, ResourceAttributes: &authorization.ResourceAttributes{
				Group: certificates.GroupName, Resource: "certificatesigningrequests", Subresource: "selfnodeclient", Verb: "create",
			},
		}}, metav1.CreateOptions{})
		must(t, err)
		if !review.Status.Allowed {
			return fmt.Errorf("%+v", review.Status)
		}
		return nil
	})
	ask := func(user string) (name string, key []byte) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: user, Organization: []string{"system:nodes"}},
		}, private)
		must(t, err)
		client, err := kubernetes.NewForConfig(c.ClientConfig(user, "system:nodes"))
		must(t, err)
		made, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificates.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
			Spec: certificates.CertificateSigningRequestSpec{
				Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}),
				SignerName: certificates.KubeAPIServerClientKubeletSignerName,
				Usages:     []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageClientAuth},
			},
		}, metav1.CreateOptions{})
		must(t, err)
		t.Cleanup(func() {
			_ = c.client.CertificatesV1().CertificateSigningRequests().Delete(context.Background(), made.Name, metav1.DeleteOptions{})
		})
		key, err = keyutil.MarshalPrivateKeyToPEM(private)
		must(t, err)
		return made.Name, key
	}
	refused, _ := ask(other)
	name, key := ask(node)
	var certificate []byte
	eventually(t, "the request is signed", func() error {
		csr, err := c.client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), name, metav1.GetOptions{})
		must(t, err)
		if certificate = csr.Status.Certificate; len(certificate) == 0 {
			return fmt.Errorf("status %+v", csr.Status)
		}
		return nil
	})
	client, err := kubernetes.NewForConfig(&rest.Config{Host: c.URL, TLSClientConfig: rest.TLSClientConfig{
		CAData: c.Keys.RootPEM(), CertData: certificate, KeyData: key,
	}})
	must(t, err)
	who, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authentication.SelfSubjectReview{}, metav1.CreateOptions{})
	must(t, err)
	if u := who.Status.UserInfo; u.Username != node || !slices.Contains(u.Groups, "system:nodes") {
		t.Errorf("the API server takes the certificate's owner for %+v", u)
	}
	csr, err := c.client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), refused, metav1.GetOptions{})
	must(t, err)
	if len(csr.Status.Conditions)+len(csr.Status.Certificate) > 0 {
		t.Errorf("a node that nobody lets ask: %+v", csr.Status)
	}
}

func TestClusterRolesAreAggregated(t *testing.T) {
	c := shared
	part := c.namespace(t) // a name that nobody else has
	role := func(name string, r *rbac.ClusterRole) {
		r.Name = name
		_, err := c.client.RbacV1().ClusterRoles().Create(t.Context(), r, metav1.CreateOptions{})
		must(t, err)
		t.Cleanup(func() {
			_ = c.client.RbacV1().ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{})
		})
	}
	role(part+"-whole", &rbac.ClusterRole{AggregationRule: &rbac.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"aggregate": part}}}}})
	rules := []rbac.PolicyRule{{APIGroups: []string{"example.com"}, Resources: []string{"boats"}, Verbs: []string{"get"}}}
	role(part+"-part", &rbac.ClusterRole{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"aggregate": part}}, Rules: rules})
	has := func(want int) func() error {
		return func() error {
			whole, err := c.client.RbacV1().ClusterRoles().Get(t.Context(), part+"-whole", metav1.GetOptions{})
			must(t, err)
			if len(whole.Rules) != want || want > 0 && !slices.Equal(whole.Rules[0].Resources, rules[0].Resources) {
				return fmt.Errorf("rules %+v", whole.Rules)
			}
			return nil
		}
	}
	eventually(t, "the whole has its part's rules", has(1))
	must(t, c.client.RbacV1().ClusterRoles().Delete(t.Context(), part+"-part", metav1.DeleteOptions{}))
	eventually(t, "and loses them with it", has(0))
}

func TestPodGarbage(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	node := c.nodes(t, 1, nil)[0]
	pod := func(name, node string) *v1.Pod {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: template(nil, "one").Spec}
		p.Spec.NodeName = node
		p, err := c.client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		must(t, err)
		return p
	}
	there := func(name string) error {
		_, err := c.client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		return err
	}
	// Nobody will ever report the end of these two: the first's node is no more, the second never had one.
	pod("stays", node)
	pod("orphan", "no-such-board")
	eventually(t, "a pod whose node is no more is deleted", func() error { return gone(there("orphan")) })
	c.boards.setAway(node, true) // so that nobody else deletes what follows
	must(t, c.client.CoreV1().Nodes().Delete(t.Context(), node, metav1.DeleteOptions{}))
	eventually(t, "and when the node goes later", func() error { return gone(there("stays")) })

	const more = 5
	name := func(i int) string { return fmt.Sprintf("ended-%03d", i) }
	board := c.nodes(t, 1, nil)[0]
	c.boards.setAway(board, true)
	for i := range endedPods + more {
		p := pod(name(i), board)
		p.Status.Phase = v1.PodFailed
		_, err := c.client.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		must(t, err)
	}
	eventually(t, "the oldest beyond what is kept are deleted", func() error {
		for i := range more {
			if err := gone(there(name(i))); err != nil {
				return err
			}
		}
		return nil
	})
	must(t, there(name(endedPods+more-1)))
}
