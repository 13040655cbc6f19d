#!/bin/bash
# fuzz.sh [FOLDER]...: every fuzz test of the packages below those folders (all by
# default), one after another, for FUZZTIME each (20s). One line per test: how often it
# was executed, and what it found; more under testdata/fuzz of its package.
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false"
[ $# -gt 0 ] || set -- .
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=0
while IFS=: read -r file test; do
  # Go looks for a smaller form of every input that reaches new code, a minute each, and
  # counts none of that as an execution: a parser of kilobytes would do nothing else.
  if timeout 600 test/go test -run '^$' -fuzz "^$test\$" -fuzztime "${FUZZTIME:-20s}" -fuzzminimizetime 1x \
    -parallel "${PARALLEL:-2}" "./$(dirname "$file")" >"$out" 2>&1; then
    result=ok
  elif grep -q '^    context deadline exceeded$' "$out" && ! grep -q 'Failing input' "$out"; then
    result=ok # Go calls it a failure if the time is over in the middle of an execution
  else
    result=FAILED failed=1
  fi
  printf '%-6s %10s  %s.%s\n' $result "$(grep -o 'execs: [0-9]*' "$out" | tail -1 | cut -d' ' -f2)" "$(dirname "${file#./}")" "$test"
  [ $result = ok ] || tail -40 "$out"
done < <(grep -rno --include=*_test.go '^func Fuzz[A-Za-z0-9_]*' "$@" | sed -E 's/^(.*):[0-9]+:func (.*)$/\1:\2/' | sort)
exit $failed
