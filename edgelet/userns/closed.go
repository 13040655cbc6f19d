package userns

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxPaths bounds the paths of one message that are looked at.
const maxPaths = 16

// Closed returns the folders, those that are there now, on the way to the absolute
// paths that a runtime's message names, which only their owner and group may pass: a
// process of another user namespace, who is nobody on the node, may not. Topmost first.
func Closed(message string) []string {
	var out []string
	for _, path := range paths(message) {
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			// Of a link the kernel asks where it leads; what isn't there closes nothing.
			info, err := os.Stat(dir)
			if err == nil && info.IsDir() && info.Mode().Perm()&0o001 == 0 && !slices.Contains(out, dir) {
				out = append(out, dir)
			}
		}
	}
	slices.Sort(out)
	return out
}

// paths finds the absolute paths in a message.
func paths(message string) []string {
	var out []string
	for _, word := range strings.FieldsFunc(message, func(r rune) bool { return strings.ContainsRune(" \t\n\"'`=,:;()[]", r) }) {
		if path := filepath.Clean(word); strings.HasPrefix(word, "/") && !slices.Contains(out, path) && len(out) < maxPaths {
			out = append(out, path)
		}
	}
	return out
}
