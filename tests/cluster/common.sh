# For the tests of this folder: what they measure, and where. Sourced with the build folder as the first argument.
set -euo pipefail
build=$(cd "$1" && pwd)
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cerebellum=$build/cerebellum
work=$(mktemp -d "${TMPDIR:-/tmp}/cerebellum-cluster-XXXXXX")
cat "$source_dir/LICENSE" "$source_dir/CONTRIBUTING.md" > "$work/text.txt"
model=$(echo "$source_dir"/models/*-f16.gguf)
settings=(--text "$work/text.txt" --tokens 128 --ctx 64 --types "q2_K,q4_0")

skip() { echo "skipped: $*"; rm -rf "$work"; exit 77; }
fail() { echo "FAILED: $*" >&2; exit 1; }
needs() { for program in "$@"; do command -v "$program" >/dev/null 2>&1 || skip "$program is not there"; done; }

# The SHA-256 of a journal's figures: equal for equal figures, in whatever order they were measured.
digest() {
  "$cerebellum" journal show --json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["sha256"])'
}
rows() {
  "$cerebellum" journal show --json "$1" 2>/dev/null |
    python3 -c 'import json, sys; j = json.load(sys.stdin); print(j["fast"] + j["full"])' 2>/dev/null || echo 0
}
measure_alone() { "$cerebellum" ablate "$model" "${settings[@]}" --threads 1 --json --journal "$work/alone.db" > /dev/null; }
