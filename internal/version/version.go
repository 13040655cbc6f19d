package version

import (
	"regexp"
	"runtime/debug"
	"strings"
)

// Kubernetes is the version of Kubernetes that all programs implement.
const Kubernetes = "v1.36.3"

// linked is set by the linker: -X github.com/coracle-edge/coracle/internal/version.linked=VERSION.
var linked string

// unknown is the version of a build that nobody gave one, as by `go test`.
const unknown = "0.0.0"

// String is this build's version, as `git describe` says it: v0.2.0,
// v0.2.0-14-g3f2a9c1, 3f2a9c1-dirty.
func String() string {
	if linked != "" {
		return linked
	}
	// `go install github.com/coracle-edge/coracle/cmd/edgelet@v0.2.0` links nothing.
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return unknown
}

// Node is what a node or an API server says of itself: v1.36.3+coracle-VERSION.
func Node() string { return node(String()) }

func node(v string) string { return Kubernetes + "+coracle-" + notBuild.ReplaceAllString(v, "-") }

// notBuild are bytes that the build part of a semantic version can't have.
var notBuild = regexp.MustCompile(`[^0-9A-Za-z.-]`)

// semver is a semantic version without its build part, https://semver.org, 2.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)

// Semantic is this build's version for readers that take a semantic version
// only, as the CRI's do: 0.2.0-14-g3f2a9c1, or 0.0.0+3f2a9c1-dirty where there is
// no tag.
func Semantic() string { return semantic(String()) }

func semantic(v string) string {
	if s := strings.TrimPrefix(v, "v"); semver.MatchString(s) {
		return s
	}
	return unknown + "+" + strings.Trim(notBuild.ReplaceAllString(v, "-"), ".-")
}
