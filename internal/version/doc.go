// Package version says which build of Coracle a program is. The Makefile's
// VERSION is linked into it; nothing else sets it.
//
// Every program may import it; it imports nothing of ours.
package version
