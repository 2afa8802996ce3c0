#!/usr/bin/env bash
# Compares what builds of rounding_bytes for several processors print.
# Usage: compare.sh ONE OTHER...   Others that cannot run here are named and left out; 77 where that is all of them.
set -euo pipefail
one=$("$1")
[ "$(wc -l <<< "$one")" -gt 20 ] || { echo "compare.sh: too few types: $one" >&2; exit 1; }
code=77
for other in "${@:2}"; do
  if text=$("$other"); then
    diff <(echo "$one") <(echo "$text") || { echo "compare.sh: $other rounds differently" >&2; exit 1; }
    code=0
  else
    [ $? -eq 77 ] || { echo "compare.sh: $other failed" >&2; exit 1; }
  fi
done
exit $code
