#!/bin/bash
# critest.sh [FLAGS...]: runs the CRI's validation suite, of the version of this
# Kubernetes and of the next one, against containerd alone, against crishim with that
# containerd behind it, and against crishim alone with Wasm images; in some fifteen
# minutes on two cores. It prints the outcomes side by side, what differs, and closes
# on the counts. FLAGS: -focus=REGEXP, -runs=crishim,wasm, -versions=v1.37.0.
#
# critest, crictl and containerd are built from modules of their own, and Debian
# packages for the images are fetched, once. Logs and reports are in .coracle/critest.
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false"
go=$PWD/test/go bin=$PWD/bin/tools/cri

build() { # FOLDER: crictl and containerd's programs, if they are tools of the module there, and its critest
  local version
  (
    cd "$1" &&
      version=$("$go" list -m -f '{{.Version}}' sigs.k8s.io/cri-tools) &&
      flags="-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version" &&
      { ! grep -q '^tool' go.mod || "$go" build -ldflags "$flags" -o "$bin/" tool; } &&
      "$go" test -c -ldflags "$flags" -o "$bin/critest-$version" sigs.k8s.io/cri-tools/cmd/critest
  )
}
# What is asked for here is what setup.sh installs; it also builds what others need.
ready() {
  local p
  for p in runc clang wasm-ld gcc iptables ip unshare; do command -v $p >/dev/null || return 1; done
  [ -x /usr/lib/cni/bridge ] && [ -d /usr/lib/wasm32-wasi ]
}
{ ready || test/setup.sh; } && make -s programs && build test/critest/tools && build test/critest/tools/next &&
  test/critest/packages.sh bin/tools/debian || exit 1

rm -f .coracle/critest/table-*.txt
out=${REPORT:-$(mktemp)}
[ -n "${REPORT:-}" ] || trap 'rm -f "$out"' EXIT
"$go" test -json -count=1 -tags grpcnotrace,slow -timeout 55m ./test/critest -args "-versions=v1.36.0,v1.37.0" "$@" >"$out" 2> >(grep -v '^E[0-9]' >&2)
rc=$?
python3 test/report.py --failures "$out"
cat .coracle/critest/table-*.txt
python3 test/report.py "$out"
exit "$rc"
