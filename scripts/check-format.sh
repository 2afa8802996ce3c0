#!/usr/bin/env bash
# Checks that our C++ sources are formatted as .clang-format says; --fix formats them in place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mapfile -t sources < <(find cerebellum tests bench examples python -type f \( -name '*.h' -o -name '*.cpp' \) | sort)
[ ${#sources[@]} -gt 0 ] || { echo "check-format.sh: no sources found" >&2; exit 1; }
command -v clang-format >/dev/null 2>&1 || { echo "check-format.sh: clang-format is missing; run scripts/system-packages.sh lint" >&2; exit 1; }
case "${1:-}" in
  --fix) clang-format -i "${sources[@]}" ;;
  "") clang-format --dry-run -Werror "${sources[@]}" || { echo "Run 'make format'." >&2; exit 1; } ;;
  *) echo "usage: check-format.sh [--fix]" >&2; exit 2 ;;
esac
