#!/usr/bin/env bash
# Configures a CMake preset where that is needed: not configured yet, or with other arguments than these.
# Usage: configure.sh PRESET BUILD_DIR [-DNAME=VALUE]...
# An argument that an earlier call gave and this one does not give keeps its value: `make build` and `make test` share
# the folder build/ and do not undo each other's settings. CMake itself notices changed CMake files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 2 ] || { echo "usage: configure.sh PRESET BUILD_DIR [-DNAME=VALUE]..." >&2; exit 2; }
preset=$1 build_dir=$2
shift 2
record=$build_dir/configured-with

wanted=()
for argument in "$@"; do
  case "$argument" in
    -D*=*) ;;
    *) echo "configure.sh: '$argument' is not of the form -DNAME=VALUE" >&2; exit 2 ;;
  esac
  if [ ! -f "$build_dir/build.ninja" ] || ! grep -qxF -- "$argument" "$record" 2>/dev/null; then wanted+=("$argument"); fi
done
[ ${#wanted[@]} -gt 0 ] || [ ! -f "$build_dir/build.ninja" ] || exit 0

# find_package remembers where it found llama.cpp: with another one, start over.
fresh=()
for argument in "${wanted[@]}"; do
  case "$argument" in
    -DCMAKE_PREFIX_PATH=*|-DLLAMA_CPP_DIR=*) if [ -f "$build_dir/CMakeCache.txt" ]; then fresh=(--fresh); fi ;;
  esac
done
if [ ${#fresh[@]} -gt 0 ]; then
  rm -f "$record"
  wanted=("$@")
fi
cmake --preset "$preset" -B "$build_dir" "${fresh[@]}" "${wanted[@]}" >&2
touch "$record"
for argument in "${wanted[@]}"; do
  name=${argument%%=*}
  grep -v -- "^$name=" "$record" > "$record.partial" || true
  echo "$argument" >> "$record.partial"
  mv "$record.partial" "$record"
done
