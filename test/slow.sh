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
[ $# -gt 0 ] || steps=(modules critest)
failed_steps=()

gotest() { # NAME go-test-arguments...
  test/go test -json -count=1 "${@:2}" >"$out/$1.json" 2>&1
  local rc=$?
  python3 test/report.py --failures "$out/$1.json"
  return $rc
}

# Programs that others wrote, built from Debian's sources, as WASI guests.
modules() {
  local packages="clang lld wasi-libc libclang-rt-14-dev-wasm32 binaryen rustc libstd-rust-dev-wasm32 tcl gcc libc6-dev make libpython3.11-testsuite"
  if [ "$(id -u)" = 0 ] && ! dpkg -s $packages >/dev/null 2>&1; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null || return 1
  fi
  examples/modules/build.sh "$out/modules" && gotest modules -timeout 40m ./test/wasi -run '^(TestLua|TestSQLite|TestRust|TestCPythonsOwnTests)$' -modules "$out/modules"
}

for s in "${steps[@]}"; do
  case $s in
    modules) modules || failed_steps+=("$s") ;;
    critest) REPORT=$out/critest.json test/critest.sh || failed_steps+=("$s") ;;
    *) echo "slow.sh: no step $s" >&2; exit 2 ;;
  esac
done
python3 test/report.py "$out"/*.json
[ ${#failed_steps[@]} -eq 0 ] || { echo "failed: ${failed_steps[*]}"; exit 1; }
