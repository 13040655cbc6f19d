#!/bin/bash
# packages.sh DIR: downloads the Debian packages that the stand-ins for critest's
# images are made of, and unpacks them into DIR/root, unless that was done before.
# They needn't be installable together, and aren't installed.
set -eu
packages="busybox libc6 util-linux libsmartcols1
  procps libproc2-0 libsystemd0 libcap2 libgcrypt20 libgpg-error0 liblzma5 libzstd1 liblz4-1
  nginx libcrypt1 libpcre2-8-0 libssl3 zlib1g"
dir=$1
[ "$(cat "$dir/packages" 2>/dev/null)" != "$packages" ] || exit 0
rm -rf "$dir"
mkdir -p "$dir/root"
cd "$dir"
fetch() { apt-get -qq -o APT::Sandbox::User=root download $packages; }
# The lists may be those of an older day, or missing.
fetch 2>/dev/null || { apt-get -qq update && fetch; }
for deb in *.deb; do
  dpkg-deb -x "$deb" root
  rm "$deb"
done
echo "$packages" >packages
