#!/usr/bin/env bash
# Runs check.mjs with its packages, which are installed to FOLDER the first time.
# Usage: run.sh FOLDER ARGUMENTS...   Exit code 77: there is no browser, node or network to do it with.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1
shift
skip() { echo "$*" >&2; exit 77; }
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
[ -n "$browser" ] || skip "no Chromium; run scripts/system-packages.sh web"
command -v npm >/dev/null 2>&1 || skip "no npm; run scripts/system-packages.sh build"
mkdir -p "$folder"
if ! cmp -s "$here/package-lock.json" "$folder/installed-lock.json"; then
  cp "$here/package.json" "$here/package-lock.json" "$folder/"
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline >npm.log 2>&1) ||
    skip "npm cannot fetch the packages of tests/web: $(tail -n 3 "$folder/npm.log" | tr '\n' ' ')"
  cp "$here/package-lock.json" "$folder/installed-lock.json"
fi
cp "$here/check.mjs" "$folder/"
CHROMIUM=$browser exec node "$folder/check.mjs" "$@"
