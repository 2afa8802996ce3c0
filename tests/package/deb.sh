#!/usr/bin/env bash
# Builds the Debian packages and uses them as a stranger would: installed in a bare Debian 12 (made by debootstrap), run,
# linked against, removed. Run by ctest under the label slow.
# Usage: deb.sh WORK_DIR [PACKAGES]
#   WORK_DIR   a folder of its own, made anew; the downloaded Debian packages stay in CEREBELLUM_CACHE
#   PACKAGES   a folder with the two packages, instead of `make deb`
# Needs root and debootstrap. Without root the packages are unpacked in WORK_DIR and run with this machine's libraries.
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=${1:?usage: deb.sh WORK_DIR [PACKAGES]}
packages=${2:-}
release=bookworm
fail() { echo "deb.sh: $*" >&2; exit 1; }

[ -n "$packages" ] || { make -C "$source_dir" deb; packages=$source_dir/build-portable; }
program_deb=$(echo "$packages"/cerebellum_*.deb)
library_deb=$(echo "$packages"/libcerebellum-dev_*.deb)
version=$(sed -n 's/^project(cerebellum VERSION \([0-9.]*\).*/\1/p' "$source_dir/CMakeLists.txt")
[ "$(dpkg-deb -f "$program_deb" Version)" = "$version" ] || fail "the package is not of version $version"

case "$work" in /|"$HOME"|"$source_dir") fail "$work is no folder of its own" ;; esac
rm -rf "$work" && mkdir -p "$work"
root=$work/root
inside() { "$@"; }
if [ "$(id -u)" -eq 0 ]; then
  bash "$source_dir/scripts/system-packages.sh" package_test
  # The dependencies come with the bare system, so that installing needs no network: dpkg refuses if one is missing.
  names=$(dpkg-deb -f "$program_deb" Depends | tr ',' '\n' | awk '{print $1}' | paste -sd,)
  [ -n "$names" ] || fail "the package depends on nothing, not even on libc6"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $release" | head -n1)
  [ -n "$mirror" ] || fail "no apt source of Debian $release is set up here, so there is nothing to bootstrap from"
  cache=${CEREBELLUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cerebellum}/debian-$release
  mkdir -p "$cache"
  debootstrap --variant=minbase --include="$names" --cache-dir="$cache" "$release" "$root" "$mirror" > "$work/debootstrap.log" \
    || { tail -n 5 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
  inside() { chroot "$root" "$@"; }
  cp "$program_deb" "$root/tmp/cerebellum.deb"
  inside dpkg -i /tmp/cerebellum.deb
else
  echo "deb.sh: not root: unpacking the package here instead of installing it in a bare system"
  dpkg -x "$program_deb" "$root"
  mkdir -p "$root/tmp"
  inside() { local program=$1; shift; "$root/usr/bin/$program" "${@/#\/tmp/$root\/tmp}"; }
fi

model=wikicode-6.8M-f16.gguf
cp "$source_dir/models/$model" "$root/tmp/"
inside cerebellum --version | grep -F "cerebellum $version " || fail "--version does not say $version"
inside cerebellum inspect "/tmp/$model" --json | grep -q '"architecture"' || fail "inspect does not work"
inside cerebellum quantize "/tmp/$model" --size 3MB --tokens 512 --ctx 128 --types q2_k,q3_k,q4_k --threads 1 --quiet \
  -o /tmp/small.gguf
[ "$(stat -c %s "$root/tmp/small.gguf")" -le 3000000 ] || fail "quantize exceeded its budget"
for file in copyright NOTICE CHANGELOG.md licences/llama.cpp licences/libcli11-dev; do
  [ -s "$root/usr/share/doc/cerebellum/$file" ] || fail "the package has no $file"
done

# A processor without AVX2 gets a sentence, not an illegal instruction.
if [ "$(uname -m)" = x86_64 ] && command -v qemu-x86_64 >/dev/null; then
  if said=$(qemu-x86_64 -cpu Nehalem -L "$root" "$root/usr/bin/cerebellum" --version 2>&1); then
    fail "ran on a processor without AVX2"
  fi
  echo "$said"
  grep -q "instructions that this processor does not have" <<< "$said" || fail "no message on a processor without AVX2"
fi

# The library, from its package alone.
dpkg -x "$library_deb" "$work/library"
cmake -S "$source_dir/examples" -B "$work/example" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_PREFIX_PATH="$work/library/usr" > "$work/example.log"
cmake --build "$work/example" >> "$work/example.log" || { tail -n 20 "$work/example.log" >&2; exit 1; }
grep -q "^llama_DIR:PATH=$work/library/" "$work/example/CMakeCache.txt" || fail "the example used another llama.cpp"
"$work/example/damage" "$root/tmp/$model" 3.5MB "$work/out.gguf" 128 1 | tail -n 1 | grep "predicted KLD" \
  || fail "the example does not work"

if [ "$(id -u)" -eq 0 ]; then
  inside dpkg --purge cerebellum
  left=$(find "$root/usr" -name '*cerebellum*')
  [ -z "$left" ] || fail "left behind after removal: $left"
fi
rm -rf "$work"
echo "deb.sh: the packages of version $version work"
