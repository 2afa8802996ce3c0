#!/usr/bin/env bash
# A smoke test of replay on ggml's Vulkan backend, on a machine without a GPU: Mesa's software Vulkan stands in for one.
# Builds llama.cpp with Vulkan into the cache (its own key; about 20 minutes on 2 cores the first time) and Cerebellum
# against it, and compares the device with llama.cpp on that device and with the CPU, for models of several kinds.
# Usage: vulkan-smoke.sh [BUILD_DIR [MODEL.gguf...]]   (defaults: build-vulkan, and models that test-llama-archs writes)
# LLAMA_BIN=<folder> holds test-llama-archs (default: what scripts/llama-cpp.sh provides). GGML_VK_VISIBLE_DEVICES picks another device.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build_dir=$(realpath -m "${1:-build-vulkan}")
[ $# -gt 0 ] && shift
bash scripts/system-packages.sh build test vulkan

models=$build_dir/models
mkdir -p "$models"
if [ $# -gt 0 ]; then
  for model in "$@"; do ln -sf "$(realpath "$model")" "$models/"; done
else
  tools=${LLAMA_BIN:-$(bash scripts/llama-cpp.sh tools)}
  for architecture in llama qwen3 gemma3 mamba; do
    (cd "$models" && "$tools/test-llama-archs" -s 1 -a "$architecture" -o . > /dev/null)
  done
fi

prefix=$(LLAMA_CPP_FLAGS="-DGGML_VULKAN=ON ${LLAMA_CPP_FLAGS:-}" bash scripts/llama-cpp.sh libs)
bash scripts/configure.sh release "$build_dir" "-DCMAKE_PREFIX_PATH=$prefix" -DCEREBELLUM_TESTS=OFF -DCEREBELLUM_DEVICE_CHECK=ON
cmake --build "$build_dir" -j "${JOBS:-$(nproc)}" --target cerebellum-device-check >&2

# ggml passes over Vulkan devices that are processors unless they are named.
if [ -z "${GGML_VK_VISIBLE_DEVICES:-}" ]; then
  for driver in /usr/share/vulkan/icd.d/lvp_icd*.json; do export VK_DRIVER_FILES=$driver VK_ICD_FILENAMES=$driver; done
  export GGML_VK_VISIBLE_DEVICES=0
fi
exec "$build_dir/tests/device/cerebellum-device-check" Vulkan0 "$models"
