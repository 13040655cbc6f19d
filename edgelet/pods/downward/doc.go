// Package downward resolves what a pod may ask about itself: fieldRef and
// resourceFieldRef, as the downward API defines them. edgelet/pods uses it for
// the environment, edgelet/volumes for files. It imports nothing of ours.
package downward
