#!/usr/bin/env bash
# Prints the newest clang++ here that can build the fuzz targets: version 16 or later, with libFuzzer's library.
# Exit code 1 where there is none.
set -euo pipefail
for clang in $(ls /usr/bin/clang++-[0-9]* 2>/dev/null | sort -Vr) $(command -v clang++ || true); do
  version=$("$clang" -dumpversion)
  [ "${version%%.*}" -ge 16 ] || continue
  ls "$("$clang" -print-resource-dir)"/lib/*/*fuzzer*.a >/dev/null 2>&1 || continue
  echo "$clang"
  exit
done
exit 1
