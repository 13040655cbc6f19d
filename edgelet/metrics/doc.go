// Package metrics writes Prometheus' text format by hand: the client library
// would cost a board more than all that it has to say. A [Page] is asked anew
// each time; it keeps nothing.
//
// It imports controlplane/api; cmd/edgelet fills it and serves it in the tunnel
// and on the admin socket. Who measures how long something takes keeps a [Histogram].
package metrics
