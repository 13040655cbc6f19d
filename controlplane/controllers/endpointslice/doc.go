// Package endpointslice keeps the EndpointSlices of Services with a selector, by upstream's reconciler
// (k8s.io/endpointslice): the same slices, names, labels, hints and conditions.
//
// A pod on a node that is away (package away) stays in its slice with its node's name, ready=false and serving=false, from
// the moment its node is away, not only when its Ready condition has been changed. So nobody else sends traffic there,
// while the endpoint isn't forgotten: which endpoints a node of the same site uses is decided from nodeName. A Service with
// publishNotReadyAddresses has ready=true all the same, as ever.
//
// Endpoints objects and mirroring of hand-made ones are upstream's controllers (package upstream).
//
// It may import package reconciler, package away and upstream's packages; package controllers calls it.
package endpointslice
