#!/usr/bin/env bash
# Provides llama.cpp at the pinned release, built once into a cache outside the source tree.
# Usage: llama-cpp.sh libs    build and install the libraries; print the install prefix
#        llama-cpp.sh tools   additionally build the referee tools; print the folder they are in
#        llama-cpp.sh source  fetch and verify only; print the source folder
# Beside the libraries lie llama.cpp's licence and its converter of Hugging Face models (share/llama.cpp).
# Environment: CEREBELLUM_CACHE (default ${XDG_CACHE_HOME:-~/.cache}/cerebellum), LLAMA_CPP_FLAGS (further CMake flags),
#              JOBS (default: number of cores).
# Only the answer goes to stdout; progress goes to stderr.
set -euo pipefail

version=0.5.0
# The npm package below carries the whole upstream repository of this release as a git bundle.
package=node-llama-cpp@3.22.1
package_sha512_base64=bltIipuWmc123H7tMIgDGKSsSrhmhlQYeVUC48XTjVW7XGJJiJJyCdlTMzQ/LiWoPkGDpcL4FviDpgw7qfTiDw==
tree_hash=fd570ef54b10ec5fecb739e7e04c8ce44a6f415a
tools=(llama-quantize llama-perplexity llama-imatrix llama-server llama-bench llama-gguf-split ggml-rpc-server
       test-llama-archs)

stage=${1:-libs}
cache=${CEREBELLUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cerebellum}
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
say() { echo "llama.cpp $version: $*" >&2; }

# ggml picks CPU kernels at compile time, so the processor's features and the compiler are part of the key.
flags=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DGGML_OPENMP=OFF
       -DGGML_CCACHE=OFF -DGGML_RPC=ON -DGGML_RPC_RDMA=OFF -DLLAMA_BUILD_IS_DEV=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
       -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF ${LLAMA_CPP_FLAGS:-})
# Its quantizers round alike everywhere; what that file says is part of the key, but not where it lies.
rounding=$(cd "$(dirname "${BASH_SOURCE[0]}")/../cmake" && pwd)/ggml_rounding.cmake
cpu_features=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || uname -m)
# What the compiler is called does not matter: pip says g++ where make says c++.
key=$(printf '%s\n' "${flags[@]}" "$(grep -v '^#' "$rounding")" "$(${CXX:-c++} --version | sed '1s/^[^ ]*/c++/;1q')" "$cpu_features" | sha256sum | cut -c1-12)

source_dir=$cache/llama.cpp-$version-src
build_dir=$cache/llama.cpp-$version-$key-build
prefix=$cache/llama.cpp-$version-$key

# What is complete is not waited for while something else is being built.
case "$stage" in
  source) [ "$(cat "$source_dir/.verified" 2>/dev/null)" != "$tree_hash" ] || { echo "$source_dir"; exit 0; } ;;
  libs)  [ ! -f "$prefix/.libs-complete" ] || [ ! -f "$prefix/.shared-complete" ] || { echo "$prefix"; exit 0; } ;;
  tools) [ ! -f "$prefix/.tools-complete" ] || [ ! -f "$prefix/.shared-complete" ] || { echo "$prefix/bin"; exit 0; } ;;
esac
mkdir -p "$cache"
exec 9>"$cache/llama.cpp-$version.lock"
command -v flock >/dev/null 2>&1 && flock 9

fetch_source() {
  if [ "$(cat "$source_dir/.verified" 2>/dev/null)" = "$tree_hash" ]; then return; fi
  command -v npm >/dev/null 2>&1 || { say "npm is needed to fetch the source (or pass -DLLAMA_CPP_DIR=)"; exit 1; }
  local scratch
  scratch=$cache/llama.cpp-$version-fetch
  rm -rf "$scratch" && mkdir -p "$scratch"
  say "fetching the source (npm package $package)"
  (cd "$scratch" && npm pack --silent "$package" >/dev/null)
  local tarball digest
  tarball=$(echo "$scratch"/*.tgz)
  digest=$(openssl dgst -sha512 -binary "$tarball" 2>/dev/null | base64 -w0 || true)
  [ -n "$digest" ] || digest=$(sha512sum "$tarball" | cut -d' ' -f1 | python3 -c \
    'import base64,sys; print(base64.b64encode(bytes.fromhex(sys.stdin.read().strip())).decode())')
  if [ "$digest" != "$package_sha512_base64" ]; then
    say "the package $package does not have the expected SHA-512; not using it"; exit 1
  fi
  tar -xzf "$tarball" -C "$scratch" package/llama/gitRelease.bundle
  rm -rf "$source_dir" "$source_dir.partial"
  git -c advice.detachedHead=false clone -q "$scratch/package/llama/gitRelease.bundle" "$source_dir.partial"
  if [ "$(git -C "$source_dir.partial" rev-parse 'HEAD^{tree}')" != "$tree_hash" ]; then
    say "the source tree is not the expected one; not using it"; rm -rf "$source_dir.partial"; exit 1
  fi
  echo "$tree_hash" > "$source_dir.partial/.verified"
  mv "$source_dir.partial" "$source_dir"
  rm -rf "$scratch"
}

configure() {
  cmake -S "$source_dir" -B "$build_dir" -G Ninja -DCMAKE_INSTALL_PREFIX="$prefix" \
        "-DCMAKE_PROJECT_ggml_INCLUDE=$rounding" "${flags[@]}" "$@" >&2
}

install_shared() {
  [ -f "$prefix/.shared-complete" ] && return
  fetch_source
  local share=$prefix/share/llama.cpp
  rm -rf "$share" && mkdir -p "$share/gguf-py"
  cp -R "$source_dir/LICENSE" "$source_dir/convert_hf_to_gguf.py" "$source_dir/conversion" "$share/"
  cp -R "$source_dir/gguf-py/gguf" "$source_dir/gguf-py/LICENSE" "$share/gguf-py/"
  touch "$prefix/.shared-complete"
}

build_libs() {
  install_shared
  [ -f "$prefix/.libs-complete" ] && return
  fetch_source
  say "building the libraries with $jobs jobs (about 7 minutes on 2 cores)"
  configure -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF
  cmake --build "$build_dir" -j "$jobs" >&2
  cmake --install "$build_dir" >/dev/null
  touch "$prefix/.libs-complete"
}

build_tools() {
  build_libs
  [ -f "$prefix/.tools-complete" ] && return
  fetch_source
  say "building the referee tools with $jobs jobs (about 7 minutes on 2 cores)"
  configure -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON
  cmake --build "$build_dir" -j "$jobs" --target "${tools[@]}" >&2
  mkdir -p "$prefix/bin"
  for tool in "${tools[@]}"; do install -m 755 "$build_dir/bin/$tool" "$prefix/bin/$tool"; done
  touch "$prefix/.tools-complete"
}

case "$stage" in
  source) fetch_source; echo "$source_dir" ;;
  libs)   build_libs;   echo "$prefix" ;;
  tools)  build_tools;  echo "$prefix/bin" ;;
  *) echo "usage: llama-cpp.sh source|libs|tools" >&2; exit 2 ;;
esac
