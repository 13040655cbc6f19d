#!/bin/bash
# Installs what the tests need and this machine lacks: Debian packages (as root),
# and staticcheck into bin/tools.
set -eu
cd "$(dirname "$0")/.."

STATICCHECK=v0.8.2
declare -A package=(
  [containerd]=containerd [runc]=runc [mosquitto]=mosquitto [nft]=nftables [iptables]=iptables [ip]=iproute2
  [dbus-daemon]=dbus [qemu-arm-static]=qemu-user-static [clang]=clang [wasm-ld]=lld [wat2wasm]=wabt [strace]=strace [busybox]=busybox-static
  [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [curl]=curl [jq]=jq [setpriv]=util-linux [npm]=npm [python3]=python3
)
missing=()
for c in "${!package[@]}"; do
  command -v "$c" >/dev/null || [ -x "/usr/sbin/$c" ] || missing+=("${package[$c]}")
done
[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
[ -d /usr/lib/wasm32-wasi ] || [ -d /usr/lib/clang/14/lib/wasi ] || missing+=(wasi-libc libclang-rt-14-dev-wasm32)
[ -e /usr/lib/llvm-14/lib/clang/14.0.6/lib/wasi ] || [ -d /usr/lib/clang/14/lib/wasi ] || missing+=(libclang-rt-14-dev-wasm32)
command -v gcc >/dev/null || missing+=(gcc libc6-dev) # the race detector needs cgo
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "missing here, the tests that need them will be skipped and counted as missing: ${missing[*]}" >&2
  fi
fi
if ! bin/tools/staticcheck -version 2>/dev/null | grep -q "${STATICCHECK#v}"; then
  GOBIN=$PWD/bin/tools GOFLAGS=-trimpath test/go install "honnef.co/go/tools/cmd/staticcheck@$STATICCHECK"
fi
# Some tests want the real kubectl; Debian has none, Kubernetes' module has.
if ! command -v kubectl >/dev/null && ! [ -x bin/tools/kubectl ]; then
  make -s bin/tools/kubectl
fi
# And test/cri the real crictl and the stock kubelet.
make -s bin/tools/crictl bin/tools/kubelet
