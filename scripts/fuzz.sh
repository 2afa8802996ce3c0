#!/usr/bin/env bash
# Fuzzes the readers of GGUF and importance matrix files with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
# Usage: fuzz.sh [SECONDS]   (default: 60; inputs that are found are kept in build-fuzz/corpus for the next time)
# Inputs in tests/fuzz/regressions have to pass first: put what made it stop there, once it is mended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
bash scripts/system-packages.sh build fuzz
clang=$(command -v clang++ || ls /usr/bin/clang++-[0-9]* | sort -V | tail -n1)
cc=${clang/clang++/clang}
cmake --preset fuzz -DCMAKE_PREFIX_PATH="$(bash scripts/llama-cpp.sh libs)" -DCMAKE_CXX_COMPILER="$clang" \
      -DCMAKE_C_COMPILER="$cc" >&2
cmake --build build-fuzz -j "${JOBS:-2}" --target gguf-fuzz >&2
mkdir -p build-fuzz/corpus build-fuzz/findings
# ggml is not instrumented: its containers cross into our code without annotations.
export ASAN_OPTIONS=detect_container_overflow=0:allocator_may_return_null=0 UBSAN_OPTIONS=print_stacktrace=1
mapfile -t regressions < <(find tests/fuzz/regressions tests/fuzz/seeds -type f ! -name '*.md' | sort)
build-fuzz/tests/gguf-fuzz "${regressions[@]}" 2>&1 | tail -n 2 >&2
# Inputs are at most 64 KiB, and an allocation of more than 64 MiB is a finding.
exec build-fuzz/tests/gguf-fuzz -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10 \
     -print_final_stats=1 -artifact_prefix=build-fuzz/findings/ build-fuzz/corpus tests/fuzz/seeds
