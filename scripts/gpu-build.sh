#!/usr/bin/env bash
# Builds llama.cpp with CUDA and Cerebellum on a machine without a network, from what scripts/gpu-bundle.sh packed, for the
# GPU in that machine only.
# Usage: gpu-build.sh [BUNDLE [WORK]]   (defaults: build-gpu/bundle, build-gpu). Prints the folder with cerebellum, its
#        device check and llama.cpp's tools.
# Flash attention's kernels are left out: they take most of CUDA's build time, and measuring switches flash attention off.
# CUDA_FLASH_ATTENTION=ON builds them: a quantized cache (bench/serving.py) needs them.
# TOOLS names llama.cpp's programs to build; CEREBELLUM=OFF leaves ours out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bundle=$(realpath "${1:-build-gpu/bundle}")
work=$(realpath -m "${2:-build-gpu}")
jobs=${JOBS:-$(nproc)}
mkdir -p "$work/llama.cpp" "$work/packages" "$work/bin"
for package in "$bundle"/packages/*.deb; do dpkg -x "$package" "$work/packages"; done
tar -C "$work/packages" -xzf "$bundle/boost.tar.gz"
[ -f "$work/llama.cpp/CMakeLists.txt" ] || tar -C "$work/llama.cpp" -xzf "$bundle/llama.cpp.tar.gz"
libraries=$work/packages/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

start=$SECONDS
say() { echo "gpu-build.sh: $* ($((SECONDS - start)) s)" >&2; }
# Libraries first and alone: what is installed must be built.
configure() {
  cmake -S "$work/llama.cpp" -B "$work/llama-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$work/llama" \
        -DBUILD_SHARED_LIBS=OFF -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DGGML_CUDA=ON -DGGML_CUDA_FA="${CUDA_FLASH_ATTENTION:-OFF}" \
        -DGGML_CUDA_NCCL=OFF -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURE:-native}" -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF \
        -DGGML_RPC=OFF -DLLAMA_BUILD_IS_DEV=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF "-DCMAKE_PROJECT_ggml_INCLUDE=$PWD/cmake/ggml_rounding.cmake" "$@" >&2
}
configure -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF
cmake --build "$work/llama-build" -j "$jobs" >&2
cmake --install "$work/llama-build" >/dev/null
say "libraries built"
read -ra tools <<< "${TOOLS:-llama-quantize llama-perplexity llama-bench llama-batched-bench llama-server test-llama-archs}"
configure -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON
cmake --build "$work/llama-build" -j "$jobs" --target "${tools[@]}" >&2
for tool in "${tools[@]}"; do install -m 755 "$work/llama-build/bin/$tool" "$work/bin/$tool"; done
say "tools built"
[ "${CEREBELLUM:-ON}" = ON ] || { echo "$work/bin"; exit; }
# ggml's package does not name the CUDA libraries that a static build of it needs.
cuda=$(dirname "$(dirname "$(realpath "$(command -v nvcc)")")")/lib64
export PKG_CONFIG_SYSROOT_DIR=$work/packages PKG_CONFIG_LIBDIR=$libraries/pkgconfig
cmake -S . -B "$work/build" -G Ninja "-DPKG_CONFIG_EXECUTABLE=$work/packages/usr/bin/pkgconf" "-DCMAKE_CXX_STANDARD_LIBRARIES=-L$cuda -L$cuda/stubs -lcudart -lcublas -lcuda" \
      -DCMAKE_BUILD_TYPE=Release "-DCMAKE_PREFIX_PATH=$work/llama;$work/packages/usr" \
      -DCEREBELLUM_TESTS=OFF -DCEREBELLUM_DEVICE_CHECK=ON -DCEREBELLUM_WERROR=OFF -DCEREBELLUM_REPORT=OFF \
      "-DSQLite3_INCLUDE_DIR=$work/packages/usr/include" "-DSQLite3_LIBRARY=$libraries/libsqlite3.a" >&2
cmake --build "$work/build" -j "$jobs" >&2
install -m 755 "$work/build/cerebellum" "$work/build/tests/device/cerebellum-device-check" "$work/bin"
say "Cerebellum built"
echo "$work/bin"
