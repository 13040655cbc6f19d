package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	crdclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/coracle-edge/coracle/controlplane/apiserver"
)

const lighthouse = `# A kind of the control plane's own.
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: lighthouses.own.test.coracle.dev
spec:
  group: own.test.coracle.dev
  scope: Cluster
  names: {plural: lighthouses, kind: Lighthouse}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            default: {}
            properties:
              height: {type: integer, default: 30}
`

func manifest(text string) fs.FS {
	return fstest.MapFS{"own/lighthouse.yaml": {Data: []byte(text)}, "own/types.go": {Data: []byte("package own")}}
}

func TestDefine(t *testing.T) {
	ctx := t.Context()
	const name = "lighthouses.own.test.coracle.dev"
	crds, err := crdclient.NewForConfig(server.ClientConfig("test", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	api := crds.ApiextensionsV1().CustomResourceDefinitions()
	t.Cleanup(func() { api.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	if err := server.Define(ctx, manifest(lighthouse)); err != nil {
		t.Fatal(err)
	}
	// The kind is served when Define returns.
	objects, err := dynamic.NewForConfig(server.ClientConfig("test", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	lighthouses := objects.Resource(schema.GroupVersionResource{Group: "own.test.coracle.dev", Version: "v1", Resource: "lighthouses"})
	if _, err := lighthouses.List(ctx, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	// An administrator's label is theirs.
	if _, err := api.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":{"harbour":"home"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	before, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	if err := server.Define(ctx, manifest(lighthouse)); err != nil {
		t.Fatal(err)
	}
	same, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil || same.ResourceVersion != before.ResourceVersion {
		t.Errorf("nothing changed, and yet the definition was written: %s, before %s, %v", same.ResourceVersion, before.ResourceVersion, err)
	}

	higher := strings.Replace(lighthouse, "default: 30", "default: 40", 1)
	if err := server.Define(ctx, manifest(higher)); err != nil {
		t.Fatal(err)
	}
	changed, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	height := changed.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["height"]
	if height.Default == nil || string(height.Default.Raw) != "40" || changed.Labels["harbour"] != "home" {
		t.Errorf("after the manifest changed: default %v, labels %v", height.Default, changed.Labels)
	}
	eventually(t, "the new default", func() error {
		made, err := lighthouses.Create(ctx, object("own.test.coracle.dev", "v1", "Lighthouse", "l", "age", 3), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err
		}
		if spec := made.Object["spec"].(map[string]any); spec["height"] != int64(40) {
			return fmt.Errorf("spec = %v", spec)
		}
		return nil
	})
}

func TestDefineNamesTheManifestThatIsWrong(t *testing.T) {
	for _, c := range []struct {
		sources []fs.FS
		is      error
		want    string
	}{
		{[]fs.FS{manifest("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n")}, apiserver.ErrDefinition, "manifest own/lighthouse.yaml: not a CustomResourceDefinition: v1 Pod"},
		{[]fs.FS{manifest(strings.Replace(lighthouse, "scope:", "scop:", 1))}, apiserver.ErrDefinition, `unknown field "scop"`},
		{[]fs.FS{manifest(lighthouse), manifest(lighthouse)}, nil, "manifest own/lighthouse.yaml: lighthouses.own.test.coracle.dev is defined in own/lighthouse.yaml already"},
		{[]fs.FS{manifest(strings.Replace(lighthouse, "storage: true", "storage: false", 1))}, nil, "CustomResourceDefinition lighthouses.own.test.coracle.dev: "},
	} {
		err := server.Define(t.Context(), c.sources...)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("Define = %v, want %q", err, c.want)
		}
	}
}
