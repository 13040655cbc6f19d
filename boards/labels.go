package boards

import (
	"fmt"
	"strings"
)

// LabelPrefix is that of the labels which are ours.
const LabelPrefix = "board.coracle.dev/"

// Labels are those of the node. They say what the board is; a label that would
// be a guess is left out.
func (b *Board) Labels() map[string]string {
	l := map[string]string{
		"kubernetes.io/os":                 "linux",
		"kubernetes.io/arch":               b.GOARCH,
		"node.kubernetes.io/instance-type": b.Slug(),
		LabelPrefix + "rtc":                yes(b.RTC != ""),
		LabelPrefix + "cgroup":             b.Cgroup.Layout,
		LabelPrefix + "wasm":               "interpreter",
	}
	if b.WasmCompiled() {
		l[LabelPrefix+"wasm"] = "compiler"
	}
	set := func(name, value string) {
		if value = labelValue(value); value != "" {
			l[LabelPrefix+name] = value
		}
	}
	set("model", b.Slug())
	set("soc", b.SoC)
	set("serial", b.Serial)
	set("cpu", strings.ToLower(b.CPU.Name))
	set("cpu-variant", b.CPU.Variant)
	if b.Storage.Kind != Unknown {
		set("storage", b.Storage.Kind)
	}
	for _, f := range features {
		if p := b.Kernel.Features[f.name]; p != Unsure {
			set("kernel-"+f.name, yes(p.Usable()))
		}
	}
	return l
}

// WasmCompiled says whether Wasm modules run as native code: wazero has
// compilers for amd64 and arm64 only, elsewhere they are interpreted.
func (b *Board) WasmCompiled() bool { return b.GOARCH == "amd64" || b.GOARCH == "arm64" }

func yes(b bool) string { return fmt.Sprintf("%t", b) }

// marks are what lawyers add to names.
var marks = strings.NewReplacer("(R)", "", "(r)", "", "(TM)", "", "(tm)", "")

// labelValue makes a string a valid label value: at most 63 of letters, digits,
// '-', '_' and '.', the first and last alphanumeric.
func labelValue(s string) string {
	var b strings.Builder
	gap := false
	for _, r := range marks.Replace(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			if gap && b.Len() > 0 {
				b.WriteByte('-')
			}
			gap = false
			b.WriteRune(r)
		default:
			gap = true
		}
		if b.Len() >= 62 { // one more byte and a gap would still fit
			break
		}
	}
	return b.String()
}
