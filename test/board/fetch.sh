#!/bin/bash
# fetch.sh FOLDER: what an emulated board of arm64 is made of, from Debian's archive that
# this machine's apt uses, with lists of its own: the kernel, a first root file system
# that loads the disk's drivers, the disk's files (busybox, kernel modules), and what
# boards with OCI containers have besides (containerd, runc, CNI's plugins).
set -eu
out=$(realpath -m "$1")
[ ! -e "$out/complete" ] || exit 0
command -v busybox >/dev/null || { echo "fetch.sh: busybox is needed (apt-get install busybox-static)" >&2; exit 1; }
rm -rf "$out"
mkdir -p "$out"/{root,oci,first}
. "$(dirname "$(realpath "$0")")/debian.sh"
oci="containerd runc containernetworking-plugins libc6 libseccomp2"
apt-get download -qq "$linux" busybox-static $oci
dpkg-deb -x busybox-static_*.deb busybox
for p in $oci; do dpkg-deb -x "${p}"_*.deb "$out/oci"; done
rm -rf "$out"/oci/usr/share/{doc,man,bash-completion,zsh,locale,lintian,golang} "$out"/oci/usr/lib/aarch64-linux-gnu/gconv
mkdir kernel
dpkg-deb --fsys-tarfile linux-image-*.deb | tar xf - -C kernel ./boot ./lib/modules
cp kernel/boot/vmlinuz-* "$out/kernel"

# The drivers of QEMU's machine virt, and what pods' networks, names of hosts and
# OCI containers' file systems need.
release=$(basename kernel/lib/modules/*)
some() { # ROOT PATTERN...
  local root=$1 m=lib/modules/$release
  shift
  (cd kernel/$m/kernel && find "$@" -name '*.ko') | while read -r f; do install -Dm644 "kernel/$m/kernel/$f" "$root/$m/kernel/$f"; done
  cp kernel/$m/modules.{order,builtin,builtin.modinfo} "$root/$m/"
  busybox depmod -b "$root" "$release"
}
disk="drivers/virtio drivers/block/virtio_blk.ko fs/ext4 fs/jbd2 fs/mbcache.ko lib crypto arch/arm64/crypto"
some "$out/first" $disk
some "$out/root" $disk drivers/net/virtio_net.ko drivers/net/net_failover.ko net/core drivers/net/veth.ko drivers/net/tun.ko \
  fs/overlayfs net/netfilter net/ipv4 net/ipv6 net/bridge net/802 net/llc
for root in "$out/first" "$out/root"; do
  mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,etc,mnt}
  cp busybox/bin/busybox "$root/bin/busybox"
done
ln -s ../bin/busybox "$out/root/sbin/init"
ln -s ../bin/busybox "$out/root/sbin/modprobe" # where the kernel looks for it
mkdir -p "$out"/root/{var/lib,var/log,var/tmp,root,opt,etc/ssl/certs}
touch "$out/complete"
