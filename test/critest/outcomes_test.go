package critest

import (
	"maps"
	"regexp"
	"strings"
	"testing"
)

const report = `[{"SpecReports":[
 {"LeafNodeType":"BeforeSuite","State":"passed"},
 {"ContainerHierarchyTexts":["A","when"],"LeafNodeType":"It","LeafNodeText":"works [x]","State":"passed","RunTime":1000},
 {"ContainerHierarchyTexts":["A"],"LeafNodeType":"It","LeafNodeText":"asks","State":"skipped","Failure":{"Message":"no kernel for it"}},
 {"ContainerHierarchyTexts":["A"],"LeafNodeType":"It","LeafNodeText":"rests","State":"skipped"},
 {"ContainerHierarchyTexts":null,"LeafNodeType":"It","LeafNodeText":"fails","State":"failed","Failure":{"Message":"1 is 2"}}]}]`

func TestParseReport(t *testing.T) {
	got, err := ParseReport(strings.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	want := Outcomes{
		"A when works [x]": {State: "passed", Took: 1000}, "A asks": {State: "skipped", Message: "no kernel for it"},
		"A rests": {State: "skipped"}, "fails": {State: "failed", Message: "1 is 2"},
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if o := got["A rests"]; o.Selected() || o.Skipped() || o.String() != "-" {
		t.Errorf("a spec that wasn't selected: %v", o)
	}
	if o := got["A asks"]; !o.Selected() || !o.Skipped() || o.Passed() {
		t.Errorf("a spec that skipped itself: %v", o)
	}
	for _, bad := range []string{"", "{", "[]", strings.Replace(report, `"BeforeSuite","State":"passed"`, `"BeforeSuite","State":"failed"`, 1),
		strings.Replace(report, `"rests"`, `"asks"`, 1)} {
		if got, err := ParseReport(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: %v, want an error", bad, got)
		}
	}
}

func TestParseSkips(t *testing.T) {
	got, err := ParseSkips(strings.NewReader("# no processes,\n# only one\nA b [x]\nC\n\n# no users\nD\n"))
	if want := (map[string]string{"A b [x]": "no processes, only one", "C": "no processes, only one", "D": "no users"}); err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"A\n", "# r\nA\n\nB\n", "# r\nA\nA\n"} {
		if got, err := ParseSkips(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
}

func TestNamePattern(t *testing.T) {
	re := regexp.MustCompile(namePattern([]string{"A b [x]", "C."}))
	for text, want := range map[string]bool{"suite A b [x]": true, "suite C.": true, "suite Cx": false, "suite A b [x] more": false, "suite A b x": false} {
		if re.MatchString(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add(report)
	f.Fuzz(func(t *testing.T, s string) {
		if out, err := ParseReport(strings.NewReader(s)); err == nil && len(out) == 0 {
			t.Error("no specs and no error")
		}
	})
}

func FuzzParseSkips(f *testing.F) {
	f.Add("# why\nname\n")
	f.Fuzz(func(t *testing.T, s string) {
		out, err := ParseSkips(strings.NewReader(s))
		for name, reason := range out {
			if err == nil && (name == "" || reason == "") {
				t.Errorf("%q: %q", name, reason)
			}
		}
	})
}
