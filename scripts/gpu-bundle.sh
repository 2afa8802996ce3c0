#!/usr/bin/env bash
# Packs what a machine with a GPU but without a network needs to build us: llama.cpp's source without the parts that a
# CUDA build has no use for, and the Debian packages of our dependencies.
# Usage: gpu-bundle.sh [FOLDER]   (default: build-gpu/bundle; the whole is about 16 MB)
# There: scripts/gpu-build.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build-gpu/bundle}
packages=(libfmt-dev libfmt9 libsqlite3-dev libsqlite3-0 nlohmann-json3-dev libcli11-dev libssl-dev zlib1g-dev
          libssl3 libboost1.74-dev libeigen3-dev libyaml-cpp-dev libyaml-cpp0.7)

source=$(bash scripts/llama-cpp.sh source)
rm -rf "$folder"
mkdir -p "$folder/packages"
tar -C "$source" --exclude=.git --exclude=./models --exclude=./docs --exclude=./media --exclude=./tools/ui/dist \
    --exclude=./benches --exclude=./examples --exclude=ggml-sycl --exclude=ggml-opencl --exclude=ggml-vulkan \
    --exclude=ggml-hexagon --exclude=ggml-metal --exclude=ggml-cann --exclude=ggml-webgpu -czf "$folder/llama.cpp.tar.gz" .
(cd "$folder/packages" && apt-get download -q "${packages[@]}" >&2)
# Of Boost only what our sources reach.
boost=$(mktemp -d)
trap 'rm -rf "$boost"' EXIT
dpkg -x "$folder"/packages/libboost*.deb "$boost"
rm "$folder"/packages/libboost*.deb
grep -rh '#include <boost/' cerebellum | sort -u | ${CXX:-c++} -std=c++20 -M -x c++ -isystem "$boost/usr/include" - | tr ' \\' '\n\n' \
  | sed -n "s|^$boost/||p" | sort -u > "$boost/files"
(cd "$boost" && find usr/lib -path '*/cmake/*' \( -path '*/Boost-*' -o -path '*/boost_headers-*' \) -type f >> files \
  && tar -czf - -T files) > "$folder/boost.tar.gz"
du -sh "$folder" >&2
