#!/bin/bash
# slow.sh [NAME]...: tests that take longer than the whole of `make test` should,
# all of them by default. What failed is shown; it closes on the counts. The last
# results stand in docs/results.md.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin/tools:$PATH:/usr/sbin:/sbin
export CGO_ENABLED=0 GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

slow() { # NAME go-test-arguments...
  local name=$1 start=$SECONDS
  shift
  echo "=== $name"
  test/go test -json -count=1 -timeout 60m "$@" >"$out/$name.json" 2>&1 || failed=1
  python3 test/report.py --failures "$out/$name.json"
  echo "--- $name ($((SECONDS - start)) s)"
}

# crishim killed at 200 moments while pods of all kinds and images come and go.
kills() { CORACLE_KILLS=200 slow kills -run TestKilledAtAnyMoment ./crishim; }

test/setup.sh || exit 1
[ $# -gt 0 ] || set -- kills
for s in "$@"; do
  case $s in
    kills) "$s" ;;
    *) echo "slow.sh: no test $s" >&2; exit 2 ;;
  esac
done
python3 test/report.py "$out"/*.json
exit $failed
