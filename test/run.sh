#!/bin/bash
# run.sh [build|lint|unit|integration|arm]...: the tests, all of them by default. Every
# step is run, whatever became of the one before; the last line counts what
# passed, failed and was skipped, and each skipped test is named with its reason.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin/tools:$PATH:/usr/sbin:/sbin
export GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false"
go=$PWD/test/go
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
steps=("$@")
[ $# -gt 0 ] || steps=(lint build unit integration arm)
failed_steps=()

# These start the real API server, timed by etcd and kubectl, or explore half a
# million states: without the race detector. The in-process transport under all
# clients of the API server is a package of its own and runs with it.
real='/(controlplane/apiserver|controlplane/controllers|cmd/controlplane|test/linkcheck|test/identity|test/affinity)$'

packages() { # race|plain: our packages, to be tested with or without the race detector
  local invert=
  [ "$1" = plain ] || invert=-v
  "$go" list ./... | grep -vE '/test/(e2e|wasmpods)$' | grep $invert -E "$real"
}

step() { # NAME COMMAND...: runs it and notes whether it failed
  local name=$1 start=$SECONDS
  shift
  echo "=== $name"
  if "$@"; then echo "--- $name: ok ($((SECONDS - start)) s)"; else
    echo "--- $name: FAILED ($((SECONDS - start)) s)"
    failed_steps+=("$name")
  fi
}

gotest() { # NAME FLAGS... PACKAGES...: go test with its verdicts kept
  local name=$1
  shift
  "$go" test -json "$@" >"$out/$name.json" 2>"$out/$name.err"
  local rc=$?
  cat "$out/$name.err" >&2
  python3 test/report.py --failures "$out/$name.json"
  return $rc
}

lint() {
  local unformatted
  unformatted=$(git ls-files "*.go" | xargs "$("$go" env GOROOT)/bin/gofmt" -l) || return 1
  [ -z "$unformatted" ] || { echo "gofmt would change: $unformatted"; return 1; }
  examples/build.sh check || return 1
  CGO_ENABLED=0 "$go" vet ./... || return 1
  # With those that make test-slow runs.
  CGO_ENABLED=0 GOFLAGS="$GOFLAGS" staticcheck -tags grpcnotrace,slow ./...
}
# The two example modules that are too large to be committed.
large_examples() { PATH=$("$go" env GOROOT)/bin:$PATH examples/build.sh config && examples/build.sh python; }
unit_race() { large_examples && CGO_ENABLED=1 gotest unit-race -race -timeout 20m $(packages race); }
unit_plain() { CGO_ENABLED=0 gotest unit -p 1 -timeout 20m $(packages plain); }
integration() {
  make -s programs || return 1
  CGO_ENABLED=0 gotest e2e -timeout 40m ./test/e2e; local rc=$?
  CGO_ENABLED=0 gotest wasmpods -timeout 15m ./test/wasmpods && return $rc
}
# The agent's packages, built for the oldest boards and run by emulation. Tests of
# edgelet/streams start themselves again in namespaces, which an emulator can't.
arm() {
  command -v qemu-arm-static >/dev/null || { echo "qemu-arm-static is missing"; return 1; }
  local list
  list=$("$go" list ./edgelet/... ./boards/... ./controlplane/api/... ./crishim/wasm | grep -v -e /testdata/ -e /edgelet/streams$) || return 1
  CGO_ENABLED=0 GOARCH=arm GOARM=6 gotest arm -p 2 -timeout 20m -exec "qemu-arm-static -cpu arm1176" $list
}

test/setup.sh || exit 1
for s in "${steps[@]}"; do
  case $s in
    lint) step lint lint ;;
    build) step build make -s build ;;
    unit) step unit-race unit_race && step unit unit_plain ;;
    integration) step integration integration ;;
    arm) step arm arm ;;
    *) echo "run.sh: no step $s" >&2; exit 2 ;;
  esac
done
python3 test/report.py "$out"/*.json
[ ${#failed_steps[@]} -eq 0 ] || { echo "failed: ${failed_steps[*]}"; exit 1; }
