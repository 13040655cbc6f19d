package pods

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/downward"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// ErrEnv is returned when a container's environment can't be made of what is on
// the node.
var ErrEnv = errors.New("environment")

// environment resolves a container's variables. pod.Status carries the pod's
// addresses.
func (m *Manager) environment(pod *v1.Pod, c *v1.Container, mounted volumes.Mounted) (map[string]string, error) {
	env := map[string]string{}
	for i := range c.EnvFrom {
		if err := m.envFrom(pod, &c.EnvFrom[i], env); err != nil {
			return nil, err
		}
	}
	services := m.serviceEnv(pod)
	lookup := func(name string) (string, bool) {
		if v, ok := env[name]; ok {
			return v, true
		}
		v, ok := services[name]
		return v, ok
	}
	for i := range c.Env {
		e := &c.Env[i]
		value, set := expand(e.Value, lookup), true
		if e.Value == "" && e.ValueFrom != nil {
			var err error
			if value, set, err = m.valueFrom(pod, c, e.ValueFrom, mounted); err != nil {
				return nil, err
			}
		}
		if set {
			env[e.Name] = value
		}
	}
	for k, v := range services {
		if _, ok := env[k]; !ok {
			env[k] = v
		}
	}
	return env, nil
}

func (m *Manager) envFrom(pod *v1.Pod, from *v1.EnvFromSource, into map[string]string) error {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := m.configMap(pod.Namespace, from.ConfigMapRef.Name, deref(from.ConfigMapRef.Optional, false))
		if err != nil || cm == nil {
			return err
		}
		for k, v := range cm.Data {
			into[from.Prefix+k] = v
		}
	case from.SecretRef != nil:
		s, err := m.secret(pod.Namespace, from.SecretRef.Name, deref(from.SecretRef.Optional, false))
		if err != nil || s == nil {
			return err
		}
		for k, v := range s.Data {
			into[from.Prefix+k] = string(v)
		}
	}
	return nil
}

// valueFrom returns a value and whether there is one: an optional reference that
// leads nowhere leaves the variable unset.
func (m *Manager) valueFrom(pod *v1.Pod, c *v1.Container, from *v1.EnvVarSource, mounted volumes.Mounted) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		v, err := downward.Field(pod, from.FieldRef.FieldPath)
		return v, true, err
	case from.ResourceFieldRef != nil:
		v, err := downward.Resource(pod, c.Name, from.ResourceFieldRef, m.allocatable())
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		optional := deref(ref.Optional, false)
		cm, err := m.configMap(pod.Namespace, ref.Name, optional)
		if err != nil || cm == nil {
			return "", false, err
		}
		v, ok := cm.Data[ref.Key]
		if !ok && !optional {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return v, ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		optional := deref(ref.Optional, false)
		s, err := m.secret(pod.Namespace, ref.Name, optional)
		if err != nil || s == nil {
			return "", false, err
		}
		v, ok := s.Data[ref.Key]
		if !ok && !optional {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return string(v), ok, nil
	case from.FileKeyRef != nil:
		return m.fileKey(pod, from.FileKeyRef, mounted)
	}
	return "", false, fmt.Errorf("%w: unsupported valueFrom of container %q", ErrEnv, c.Name)
}

// configMap returns nil for an optional one that is not here.
func (m *Manager) configMap(namespace, name string, optional bool) (*v1.ConfigMap, error) {
	raw, found, err := m.cfg.Store.Object("ConfigMap", namespace, name)
	switch {
	case err != nil:
		return nil, err
	case found:
		return kubeobj.ConfigMap(raw)
	case optional:
		return nil, nil
	}
	return nil, fmt.Errorf("configmap %q not found", name)
}

func (m *Manager) secret(namespace, name string, optional bool) (*v1.Secret, error) {
	raw, found, err := m.cfg.Store.Object("Secret", namespace, name)
	switch {
	case err != nil:
		return nil, err
	case found:
		return kubeobj.Secret(raw)
	case optional:
		return nil, nil
	}
	return nil, fmt.Errorf("secret %q not found", name)
}

// expand replaces $(NAME), as the API documents: $$ is an escaped dollar, and a
// reference to what isn't there stays as it is.
func expand(in string, lookup func(string) (string, bool)) string {
	if !strings.Contains(in, "$") {
		return in
	}
	var b strings.Builder
	for i := 0; i < len(in); i++ {
		if in[i] != '$' || i+1 >= len(in) {
			b.WriteByte(in[i])
			continue
		}
		switch in[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(in[i+2:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			name := in[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

func expandAll(in []string, env map[string]string) []string {
	if len(in) == 0 {
		return nil
	}
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = expand(s, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	}
	return out
}

// keyValues orders an environment, so that equal ones look equal.
func keyValues(env map[string]string) []*runtimeapi.KeyValue {
	out := make([]*runtimeapi.KeyValue, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, &runtimeapi.KeyValue{Key: k, Value: []byte(env[k])})
	}
	return out
}

// serviceEnv is what Docker links once were: variables for the Services on this
// node, of the pod's namespace if it enables links, and always for
// default/kubernetes.
func (m *Manager) serviceEnv(pod *v1.Pod) map[string]string {
	env := map[string]string{}
	if m.cfg.Services == nil {
		return env
	}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	for _, raw := range m.cfg.Services() {
		s, err := kubeobj.Service(raw)
		if err != nil {
			continue
		}
		master := s.Namespace == "default" && s.Name == "kubernetes"
		if !master && (!links || s.Namespace != pod.Namespace) {
			continue
		}
		addServiceEnv(env, s)
	}
	return env
}

func addServiceEnv(env map[string]string, s *v1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	prefix := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	first := s.Spec.Ports[0]
	env[prefix+"_SERVICE_HOST"] = ip
	env[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(first.Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			env[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = port
		}
		proto := string(p.Protocol)
		if proto == "" {
			proto = string(v1.ProtocolTCP)
		}
		url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			env[prefix+"_PORT"] = url
		}
		portPrefix := prefix + "_PORT_" + port + "_" + proto
		env[portPrefix] = url
		env[portPrefix+"_PROTO"] = strings.ToLower(proto)
		env[portPrefix+"_PORT"] = port
		env[portPrefix+"_ADDR"] = ip
	}
}
