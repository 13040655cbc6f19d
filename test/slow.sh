#!/bin/bash
# slow.sh [STEP]...: the tests that take longer than five minutes, all of them by
# default. Every step is run, whatever became of the one before; the last line counts
# what passed and failed. Their last results are in docs/results.md.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin/tools:$PATH:/usr/sbin:/sbin
export CGO_ENABLED=0 GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false"
out=$(mktemp -d)
trap 'chmod -R u+w "$out"; rm -rf "$out"' EXIT
steps=("$@")
[ $# -gt 0 ] || steps=(critest modules kills board)
failed_steps=()

gotest() { # NAME go-test-arguments...
  test/go test -json -count=1 -tags grpcnotrace,slow -timeout 60m "${@:2}" >"$out/$1.json" 2>&1
  local rc=$?
  python3 test/report.py --failures "$out/$1.json"
  return $rc
}

# The CRI's own validation suite.
critest() { REPORT=$out/critest.json test/critest.sh; }

# Programs that others wrote, built from Debian's sources, as WASI guests.
modules() {
  local packages="clang lld wasi-libc libclang-rt-14-dev-wasm32 binaryen rustc libstd-rust-dev-wasm32 tcl gcc libc6-dev make libpython3.11-testsuite"
  if [ "$(id -u)" = 0 ] && ! dpkg -s $packages >/dev/null 2>&1; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null || return 1
  fi
  examples/modules/build.sh "$out/modules" && gotest modules ./test/wasi -run '^(TestLua|TestSQLite|TestQuickJS|TestQuickJSsOwnTests|TestRust|TestCPythonsOwnTests)$' -modules "$out/modules"
}

# crishim killed at 200 moments while pods of all kinds and images come and go.
kills() { CORACLE_KILLS=200 gotest kills -run TestKilledAtAnyMoment ./crishim; }

# An emulated board: a pure cgroup v2, a clock that jumps, eviction. CORACLE_BOARD is a
# folder that has what it is made of; by default all of it is fetched (100 MB).
board() {
  export CORACLE_BOARD=${CORACLE_BOARD:-$out/board}
  command -v qemu-system-aarch64 busybox >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-arm busybox-static >/dev/null; } || return 1
  test/board/fetch.sh "$CORACLE_BOARD" && gotest board -run TestBoard ./test/board
}

test/setup.sh || exit 1
for s in "${steps[@]}"; do
  case $s in
    critest | modules | kills | board)
      start=$SECONDS
      echo "=== $s"
      "$s" || failed_steps+=("$s")
      echo "--- $s ($((SECONDS - start)) s)"
      ;;
    *) echo "slow.sh: no step $s" >&2; exit 2 ;;
  esac
done
python3 test/report.py "$out"/*.json
[ ${#failed_steps[@]} -eq 0 ] || { echo "failed: ${failed_steps[*]}"; exit 1; }
