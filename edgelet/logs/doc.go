// Package logs reads container logs in the format of the CRI
//
//	2016-10-06T00:17:09.669794202Z stdout P the first part of a line
//	2016-10-06T00:17:09.669794203Z stdout F  and its end
//
// as the kubelet does for `kubectl logs`: the last lines without reading all,
// since a time, with timestamps, up to a number of bytes, followed while the
// container runs, also over rotations.
//
// It imports the standard library and golang.org/x/sys. edgelet/tunnel calls it.
package logs
