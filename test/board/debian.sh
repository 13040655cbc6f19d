# debian.sh, to be sourced: makes $dir, removed at the end, the working folder, with
# lists of apt's own for arm64, from Debian's archive that this machine's apt uses.
# $linux is the package of the kernel.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial
touch "$dir/status"
cat >"$dir/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
END
export APT_CONFIG=$dir/apt.conf
cd "$dir"
apt-get update -qq
linux=$(apt-cache depends linux-image-arm64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
