#!/usr/bin/env bash
# Fuzzes all readers of files and texts from elsewhere with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
# Usage: fuzz.sh [SECONDS]   (default: 60, half of them for each target; inputs that are found are kept in
#        build-fuzz/corpus-* for the next time)
# Inputs in tests/fuzz/regressions* have to pass first: put what made it stop there, once it is mended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=$(( (${1:-60} + 1) / 2 ))
bash scripts/system-packages.sh build fuzz
clang=$(bash scripts/find-clang.sh)
cc=${clang/clang++/clang}
cmake --preset fuzz -DCMAKE_PREFIX_PATH="$(bash scripts/llama-cpp.sh libs)" -DCMAKE_CXX_COMPILER="$clang" \
      -DCMAKE_C_COMPILER="$cc" >&2
cmake --build build-fuzz -j "${JOBS:-2}" --target gguf-fuzz readers-fuzz >&2
# ggml is not instrumented: its containers cross into our code without annotations.
export ASAN_OPTIONS=detect_container_overflow=0:allocator_may_return_null=0 UBSAN_OPTIONS=print_stacktrace=1

# TARGET SEEDS REGRESSIONS: inputs are at most 64 KiB, and an allocation of more than 64 MiB is a finding.
fuzz() {
  local target=$1 seeds=tests/fuzz/$2 regressions=tests/fuzz/$3
  local corpus=build-fuzz/corpus-$target
  mkdir -p "$corpus" build-fuzz/findings
  local inputs
  mapfile -t inputs < <(find "$regressions" "$seeds" -type f ! -name '*.md' | sort)
  "build-fuzz/tests/$target-fuzz" "${inputs[@]}" 2>&1 | tail -n 2 >&2
  "build-fuzz/tests/$target-fuzz" -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10 \
    -print_final_stats=1 -artifact_prefix="build-fuzz/findings/$target-" "$corpus" "$seeds"
}
fuzz gguf seeds regressions
fuzz readers seeds-readers regressions-readers
