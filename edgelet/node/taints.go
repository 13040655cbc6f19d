package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ErrTaint is returned for a taint that can't be read.
var ErrTaint = errors.New("not a taint")

// ParseTaints reads NAME=VALUE:EFFECT or NAME:EFFECT, with commas between them, as
// a kubelet's --register-with-taints.
func ParseTaints(list string) ([]v1.Taint, error) {
	var out []v1.Taint
	for _, item := range strings.Split(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, effect, ok := strings.Cut(item, ":")
		name, value, _ := strings.Cut(name, "=")
		t := v1.Taint{Key: name, Value: value, Effect: v1.TaintEffect(effect)}
		switch {
		case !ok || len(validation.IsQualifiedName(name)) > 0 || len(validation.IsValidLabelValue(value)) > 0:
			return nil, fmt.Errorf("%w: %q is not NAME=VALUE:EFFECT", ErrTaint, item)
		case t.Effect != v1.TaintEffectNoSchedule && t.Effect != v1.TaintEffectPreferNoSchedule && t.Effect != v1.TaintEffectNoExecute:
			return nil, fmt.Errorf("%w: %q: the effect is %s, %s or %s", ErrTaint, item, v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute)
		case slices.ContainsFunc(out, func(o v1.Taint) bool { return o.Key == t.Key && o.Effect == t.Effect }):
			return nil, fmt.Errorf("%w: %q is there twice", ErrTaint, item)
		}
		out = append(out, t)
	}
	return out, nil
}
