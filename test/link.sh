#!/bin/bash
# link.sh: explores the fleet link's machines as deep as the scenarios say, on two
# cores within minutes and 4 GiB. It prints what it saw of each scenario, then what
# failed, and closes on the counts.
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false"
out=$(mktemp)
trap 'rm -f "$out"' EXIT
test/go test -json -count=1 -timeout 60m ./test/linkcheck -args -full 2>&1 |
  tee "$out" | grep --line-buffered -o '"Output":"explored [^"]*' | sed -u 's/^"Output":"explored //; s/\\n$//'
rc=${PIPESTATUS[0]}
python3 test/report.py --failures "$out"
python3 test/report.py "$out"
exit "$rc"
