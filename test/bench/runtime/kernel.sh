#!/bin/bash
# kernel.sh OUT: fetches Debian's arm64 kernel for a QEMU guest, from the archive that
# this machine's apt uses, with lists of its own.
set -eu
out=$(realpath -m "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial "$(dirname "$out")"
touch "$dir/status"
cat >"$dir/apt.conf" <<EOF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
EOF
export APT_CONFIG=$dir/apt.conf
cd "$dir"
apt-get update -qq
package=$(apt-cache depends linux-image-arm64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
apt-get download -qq "$package"
dpkg-deb --fsys-tarfile linux-image-*.deb | tar xf - --wildcards './boot/vmlinuz-*'
mv boot/vmlinuz-* "$out"
