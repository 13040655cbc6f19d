package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	apiextensionshelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// ErrDefinition is returned when a manifest isn't that of a CustomResourceDefinition.
var ErrDefinition = errors.New("not a CustomResourceDefinition")

// definitionsManager owns the fields of the definitions that manifests set.
const definitionsManager = "coracle"

// definition is one manifest.
type definition struct {
	name     string
	manifest []byte
}

// Define makes the API serve the kinds whose CustomResourceDefinitions are the *.yaml files of sources. It returns once
// they are established, or at the first error; it may be called again at any time, after an error too.
//
// Manifests are applied on the server's side: one that is there already costs no write, one that changed is followed, and
// what others have set beside it stays. A definition that no manifest has any more stays too, for its objects' sake.
func (s *Server) Define(ctx context.Context, sources ...fs.FS) error {
	definitions, err := readDefinitions(sources)
	if err != nil || len(definitions) == 0 {
		return err
	}
	config := s.loopback()
	config.ContentType, config.AcceptContentTypes = "", ""
	client, err := crdclient.NewForConfig(config)
	if err != nil {
		return err
	}
	crds := client.ApiextensionsV1().CustomResourceDefinitions()
	for _, d := range definitions {
		crd, err := crds.Patch(ctx, d.name, types.ApplyYAMLPatchType, d.manifest, metav1.PatchOptions{FieldManager: definitionsManager, Force: ptr.To(true)})
		if err != nil {
			return fmt.Errorf("CustomResourceDefinition %s: %w", d.name, err)
		}
		if err := Retry(ctx, func(ctx context.Context) error {
			if crd, err = crds.Get(ctx, d.name, metav1.GetOptions{}); err != nil {
				return err
			}
			return established(crd)
		}); err != nil {
			return fmt.Errorf("CustomResourceDefinition %s: %w", d.name, err)
		}
	}
	return nil
}

// established is nil if the kind is served, else it says what the API server holds against it.
func established(crd *apiextensionsv1.CustomResourceDefinition) error {
	if apiextensionshelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		return nil
	}
	if c := apiextensionshelpers.FindCRDCondition(crd, apiextensionsv1.NamesAccepted); c != nil && c.Status == apiextensionsv1.ConditionFalse {
		return fmt.Errorf("not served: %s: %s", c.Reason, c.Message)
	}
	return errors.New("not served yet")
}

func readDefinitions(sources []fs.FS) ([]definition, error) {
	var all []definition
	from := map[string]string{} // name -> file
	for _, source := range sources {
		err := fs.WalkDir(source, ".", func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || path.Ext(file) != ".yaml" {
				return err
			}
			data, err := fs.ReadFile(source, file)
			if err != nil {
				return err
			}
			found, err := parseDefinitions(data)
			if err != nil {
				return fmt.Errorf("manifest %s: %w", file, err)
			}
			for _, d := range found {
				if first, ok := from[d.name]; ok {
					return fmt.Errorf("manifest %s: %s is defined in %s already", file, d.name, first)
				}
				from[d.name] = file
			}
			all = append(all, found...)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// parseDefinitions returns the definitions of one file, which may have several.
func parseDefinitions(data []byte) ([]definition, error) {
	var all []definition
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(document, &crd); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDefinition, err)
		}
		if crd.APIVersion == "" && crd.Kind == "" && crd.Name == "" {
			continue // only comments, as before the first ---
		}
		if crd.APIVersion != apiextensionsv1.SchemeGroupVersion.String() || crd.Kind != "CustomResourceDefinition" {
			return nil, fmt.Errorf("%w: %s %s", ErrDefinition, crd.APIVersion, crd.Kind)
		}
		all = append(all, definition{crd.Name, document})
	}
}
