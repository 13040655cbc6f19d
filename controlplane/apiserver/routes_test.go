package apiserver

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/emicklei/go-restful/v3"
)

func TestRoutesShareWhatTheyHaveInCommon(t *testing.T) {
	container := restful.NewContainer()
	container.Router(restful.CurlyRouter{})
	ws := new(restful.WebService)
	ws.Path("/api")
	var got string
	for _, kind := range []string{"pods", "nodes"} {
		ws.Route(ws.GET("/"+kind+"/{name}").
			Param(ws.QueryParameter("pretty", "If 'true', then the output is pretty printed.")).
			Param(ws.PathParameter("name", "name of the "+kind)).
			Returns(http.StatusOK, "OK", "").
			To(func(req *restful.Request, resp *restful.Response) { got = kind + " " + req.PathParameter("name") }))
	}
	container.Add(ws)
	slimRoutes(container)

	a, b := ws.Routes()[0], ws.Routes()[1]
	if a.ParameterDocs[0] != b.ParameterDocs[0] {
		t.Error("equal parameters are two")
	}
	if a.ParameterDocs[1] == b.ParameterDocs[1] {
		t.Error("different parameters are one")
	}
	if reflect.ValueOf(a.ResponseErrors).Pointer() != reflect.ValueOf(b.ResponseErrors).Pointer() {
		t.Error("equal responses are two")
	}
	for _, r := range []restful.Route{a, b} {
		m := reflect.ValueOf(r).FieldByName("pathExpr").Elem().FieldByName("Matcher")
		if m.Pointer() != reflect.ValueOf(unused).Pointer() {
			t.Errorf("%s keeps its expression", r.Path)
		}
	}
	for path, want := range map[string]string{"/api/pods/x": "pods x", "/api/nodes/y": "nodes y", "/api/other/z": ""} {
		got = ""
		container.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
		if got != want {
			t.Errorf("%s went to %q", path, got)
		}
	}
}
