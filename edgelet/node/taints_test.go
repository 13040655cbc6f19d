package node

import (
	"errors"
	"fmt"
	"testing"
)

func TestParseTaints(t *testing.T) {
	for in, want := range map[string]string{
		"": "[]", "a=b:NoSchedule": "[a=b:NoSchedule]", "example.org/a:NoExecute, b=:PreferNoSchedule": "[example.org/a:NoExecute b:PreferNoSchedule]",
		"a": "", "a=b": "", ":NoSchedule": "", "a=b:Never": "", "a=b c:NoSchedule": "", "a=1:NoSchedule,a=2:NoSchedule": "",
	} {
		got, err := ParseTaints(in)
		text := "["
		for i, taint := range got {
			if i > 0 {
				text += " "
			}
			text += taint.ToString()
		}
		if text += "]"; want == "" != errors.Is(err, ErrTaint) || want != "" && text != want {
			t.Errorf("%q: %s, %v; want %s", in, text, err, want)
		}
	}
}

func FuzzParseTaints(f *testing.F) {
	f.Add("a=b:NoSchedule,example.org/a:NoExecute")
	f.Fuzz(func(t *testing.T, in string) {
		taints, err := ParseTaints(in)
		if err != nil {
			return
		}
		list := ""
		for _, taint := range taints {
			list += fmt.Sprintf("%s=%s:%s,", taint.Key, taint.Value, taint.Effect)
		}
		if again, err := ParseTaints(list); err != nil || len(again) != len(taints) {
			t.Errorf("%q became %q: %v", in, list, err)
		}
	})
}
