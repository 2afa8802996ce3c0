#!/usr/bin/env bash
# Runs clang-tidy over our sources, with as many processes as JOBS says (default: the number of cores).
# Usage: lint.sh [BUILD_DIR [FILE...]]   BUILD_DIR (default: build) holds compile_commands.json; default files: all of
#                                        cerebellum/ that the compile database knows
# A file that passed is skipped until its text, a header of ours that it includes or .clang-tidy changes (stamps in
# BUILD_DIR/lint). Which headers it includes is what Ninja noted when it compiled the file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build_dir=${1:-build}
[ $# -gt 0 ] && shift
if [ ! -f "$build_dir/compile_commands.json" ]; then
  echo "lint.sh: $build_dir has no compile_commands.json; run 'make build' first" >&2; exit 1
fi
command -v clang-tidy >/dev/null 2>&1 || { echo "lint.sh: clang-tidy is missing; run scripts/system-packages.sh lint" >&2; exit 1; }

files=("$@")
if [ ${#files[@]} -eq 0 ]; then mapfile -t files < <(find cerebellum -name '*.cpp' | sort); fi

export stamps=$build_dir/lint build_dir
mkdir -p "$stamps"
# A line per compiled source: its path, and a hash of the contents of the headers of ours that it includes.
export keys=$stamps/header-keys.partial
ninja -C "$build_dir" -t deps | python3 -c '
import hashlib, pathlib, sys
root, build = pathlib.Path.cwd(), pathlib.Path(sys.argv[1]).resolve()
digests = {}
def digest(path):
    if path not in digests:
        digests[path] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
    return digests[path]
for block in sys.stdin.read().split("\n\n"):
    paths = [(build / line.strip()).resolve() for line in block.splitlines()[1:]]
    ours = [path for path in paths if path.is_relative_to(root / "cerebellum")]
    if ours:
        headers = sorted(f"{path.relative_to(root)} {digest(path)}" for path in ours[1:])
        print(ours[0].relative_to(root), hashlib.sha256("\n".join(headers).encode()).hexdigest()[:16])
' "$build_dir" > "$keys"
rules=$(sha256sum .clang-tidy "$(command -v clang-tidy)" | sha256sum | cut -c1-8)
export rules

lint_one() {
  local file=$1 key
  grep -qF "/$file\"" "$build_dir/compile_commands.json" || { echo "not in the compile database, skipped: $file" >&2; return 0; }
  key=$(awk -v file="$file" '$1 == file { print $2; exit }' "$keys")
  [ -n "$key" ] || { echo "not compiled in $build_dir, so not looked at: $file" >&2; return 1; }
  key=$stamps/$(echo "$file" | tr / _).$(sha256sum "$file" | cut -c1-16).$key.$rules
  [ -f "$key" ] && return 0
  echo "clang-tidy $file" >&2
  clang-tidy --quiet --extra-arg=-Wno-unknown-warning-option -p "$build_dir" "$file" 2> >(grep -vE '^[0-9]+ warnings? (generated|treated as)|^Suppressed|^Use -header-filter' >&2) || return 1
  rm -f "$stamps/$(echo "$file" | tr / _)".*
  touch "$key"
}
export -f lint_one

printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "${JOBS:-$(nproc 2>/dev/null || echo 2)}" bash -c 'lint_one "$1"' _ ||
  { echo "lint.sh: clang-tidy has complaints (above)" >&2; exit 1; }
