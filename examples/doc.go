// Package examples holds the programs that show what Coracle runs. Each folder
// has its source, its module and its manifest; the Go file gives `coracle up` the
// one that it applies.
package examples
