// Package plugins owns the scheduler's filters and scores, one per file.
//
// To add one: write a file with a type that implements framework.Filter or
// framework.Score (and whichever optional interfaces it needs), a table test
// beside it, and a line in [Default]. Reasons are worded so that they read on
// after a number of nodes ("2 node(s) were unschedulable") and are upstream's
// where upstream has the same check.
//
// It imports framework, Kubernetes' listers and component-helpers. Only the
// scheduler's constructor calls it.
package plugins
