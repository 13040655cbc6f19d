package permissions

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables into docs/security.md")

const page = "../../../docs/security.md"

// The page shows the table as it is.
func TestThePageShowsTheTable(t *testing.T) {
	rules, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, door := range []string{API, MQTT, Fleet} {
		begin, end := "<!-- permissions: "+door+" -->\n", "<!-- end -->"
		_, rest, ok := strings.Cut(text, begin)
		shown, _, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no %q", page, begin)
		}
		want := Markdown(rules, door)
		if shown == want {
			continue
		}
		if !*update {
			t.Errorf("%s shows another table for %s; go test ./controlplane/join/permissions -update writes it", page, door)
			continue
		}
		text = strings.Replace(text, begin+shown+end, begin+want+end, 1)
	}
	if *update {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParse(t *testing.T) {
	for name, text := range map[string]string{
		"few columns":  "api\tpods\tget\tyes",
		"many columns": "api\tpods\tget\tyes\tno\tnote\tmore",
		"a door":       "window\tpods\tget\tyes\tno",
		"no verb":      "api\tpods\tget,\tyes\tno",
		"nothing":      "api\t\tget\tyes\tno",
		"perhaps":      "api\tpods\tget\tperhaps\tno",
		"twice":        "api\tpods\tget,list\tyes\tno\napi\tpods\tlist\tno\tno",
	} {
		if _, err := Parse(text); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	rules, err := Parse("# comment\n\napi\tpods\tget,list\tyes\tno\tmine\n")
	if err != nil || len(rules) != 1 || !rules[0].Own || rules[0].Others || rules[0].Note != "mine" {
		t.Errorf("%+v, %v", rules, err)
	}
	if r, found := Find(rules, API, "pods", "list"); !found || !r.Own {
		t.Errorf("%+v", r)
	}
	if r, found := Find(rules, API, "pods", "delete"); found || r.Own || r.Others {
		t.Errorf("what isn't named is allowed: %+v", r)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(source)
	f.Add("api\tpods\tget\tyes\tno\n")
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := Parse(text)
		if err != nil {
			return
		}
		for _, r := range rules {
			if r.What == "" || len(r.Verbs) == 0 {
				t.Errorf("%q has %+v", text, r)
			}
		}
	})
}
