#!/usr/bin/env bash
# Installs the Python package in a virtual environment of its own and tests it: types with mypy, behaviour with pytest.
# Run by ctest under the label slow.
# Usage: test.sh WORK_DIR [PYTEST_ARGUMENT]...    (WORK_DIR is made anew)
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${1:?usage: test.sh WORK_DIR [PYTEST_ARGUMENT]...}
shift
case "$work" in /|"$HOME"|"$source_dir") echo "test.sh: $work is no folder of its own" >&2; exit 2 ;; esac
bash "$source_dir/scripts/system-packages.sh" build pip
rm -rf "$work" && mkdir -p "$work"
work=$(cd "$work" && pwd)
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --config-settings=build-dir="$work/build" \
  "$source_dir[test]" mypy pandas-stubs
cd "$work"  # so that the installed package is imported, not the sources
"$work/venv/bin/python" -m mypy --strict --package cerebellum
exec "$work/venv/bin/python" -m pytest -c "$source_dir/pyproject.toml" --rootdir "$source_dir" "$source_dir/python/tests" "$@"
