#!/bin/sh
# Builds pause.c for every board; the results are committed, CI builds them
# again and compares. Needs clang and lld.
set -eu
cd "$(dirname "$0")"
build() { # GOARCH target flags...
	arch=$1 target=$2
	shift 2
	clang --target="$target" "$@" -Os -nostdlib -static -ffreestanding -fno-stack-protector \
		-fno-asynchronous-unwind-tables -fuse-ld=lld -Wl,--build-id=none,-z,noseparate-code,-s -o "pause-$arch" pause.c
}
build amd64 x86_64-linux-gnu
build arm64 aarch64-linux-gnu
build arm armv6-linux-gnueabihf -marm
build riscv64 riscv64-linux-gnu
