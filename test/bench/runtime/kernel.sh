#!/bin/bash
# kernel.sh OUT: fetches Debian's arm64 kernel for a QEMU guest.
set -eu
out=$(realpath -m "$1")
mkdir -p "$(dirname "$out")"
. "$(dirname "$(realpath "$0")")/../../board/debian.sh"
apt-get download -qq "$linux"
dpkg-deb --fsys-tarfile linux-image-*.deb | tar xf - --wildcards './boot/vmlinuz-*'
mv boot/vmlinuz-* "$out"
