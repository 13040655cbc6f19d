#!/bin/bash
# slow.sh [STEP]...: the tests that take longer than five minutes, all of them by
# default. Every step is run, whatever became of the one before; the last line counts
# what passed and failed. Their last results are in docs/results.md.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
steps=("$@")
[ $# -gt 0 ] || steps=(critest kills)
failed_steps=()

# crishim killed at 200 moments while pods of all kinds and images come and go.
kills() {
  test/setup.sh || return 1
  CGO_ENABLED=0 GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false" CORACLE_KILLS=200 \
    test/go test -json -count=1 -timeout 60m -run TestKilledAtAnyMoment ./crishim >"$out/kills.json" 2>&1
  local rc=$?
  python3 test/report.py --failures "$out/kills.json"
  return $rc
}

for s in "${steps[@]}"; do
  case $s in
    critest) REPORT=$out/critest.json test/critest.sh || failed_steps+=("$s") ;;
    kills) kills || failed_steps+=("$s") ;;
    *) echo "slow.sh: no step $s" >&2; exit 2 ;;
  esac
done
python3 test/report.py "$out"/*.json | tail -1
[ ${#failed_steps[@]} -eq 0 ] || { echo "failed: ${failed_steps[*]}"; exit 1; }
