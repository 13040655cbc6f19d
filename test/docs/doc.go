// Package docs holds what the repository's documents claim against what there is. It has tests only and imports nothing of
// ours.
package docs
