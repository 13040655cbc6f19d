package apiserver

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"unsafe"

	"github.com/emicklei/go-restful/v3"
)

// slimRoutes lets the thousand routes of a container share what they have in
// common, which saves some 7 MiB. go-restful gives each route its own copy of
// the documentation of parameters and responses that all routes of a kind have,
// and a compiled regular expression that only another router than Kubernetes'
// (CurlyRouter) would use. It is to be called after the last installation.
func slimRoutes(container *restful.Container) {
	parameters := map[string]*restful.Parameter{}
	responses := map[string]map[int]restful.ResponseError{}
	for _, service := range container.RegisteredWebServices() {
		routes := service.Routes()
		for i := range routes {
			r := &routes[i]
			for j, p := range r.ParameterDocs {
				key := fmt.Sprintf("%+v", p.Data())
				if parameters[key] == nil {
					parameters[key] = p
				}
				r.ParameterDocs[j] = parameters[key]
			}
			key := ""
			for _, code := range slices.Sorted(maps.Keys(r.ResponseErrors)) {
				e := r.ResponseErrors[code]
				key += fmt.Sprintf("%d %s %T %v %+v;", code, e.Message, e.Model, e.IsDefault, e.Headers)
			}
			if responses[key] == nil {
				responses[key] = r.ResponseErrors
			}
			r.ResponseErrors = responses[key]
			dropMatcher(r)
		}
	}
}

// unused stands for the expressions that nobody asks.
var unused = regexp.MustCompile(`^\z`)

// dropMatcher puts unused in the place of a route's expression. The field is
// not exported; if a release of go-restful names it otherwise, nothing is done
// and TestRoutesShareWhatTheyHaveInCommon fails.
func dropMatcher(r *restful.Route) {
	expression := reflect.ValueOf(r).Elem().FieldByName("pathExpr")
	if expression.Kind() != reflect.Pointer || expression.IsNil() {
		return
	}
	matcher := expression.Elem().FieldByName("Matcher")
	if matcher.IsValid() && matcher.Type() == reflect.TypeFor[*regexp.Regexp]() {
		*(**regexp.Regexp)(unsafe.Pointer(matcher.UnsafeAddr())) = unused
	}
}
