// critest of the following minor version, which has more specs.
module github.com/coracle-edge/coracle/test/critest/tools/next

go 1.26.6

require sigs.k8s.io/cri-tools v1.37.0
