// Package fakecri is a CRI runtime in memory, for tests: it behaves as the
// comments of the CRI say, runs nothing, and lets a test say what containers do
// and which calls fail. It uses the time of package time, so it can be used in a
// synctest bubble.
package fakecri
