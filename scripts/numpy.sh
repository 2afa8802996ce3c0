#!/usr/bin/env bash
# Prints the folder to put on PYTHONPATH so that python3 has numpy; an empty line where it has it anyway.
# numpy is fetched with pip as converter/requirements.txt pins it, once for each version of Python.
# Environment: CEREBELLUM_CACHE (default ${XDG_CACHE_HOME:-~/.cache}/cerebellum)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CEREBELLUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cerebellum}

if python3 -c "import numpy" 2>/dev/null; then echo; exit 0; fi
folder=$cache/numpy-$(python3 -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
if [ -d "$folder" ]; then echo "$folder"; exit 0; fi
bash "$here/system-packages.sh" pip
mkdir -p "$cache"
scratch=$(mktemp -d "$cache/numpy-fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
awk '/^[^ #]/ { ours = /^numpy==/ } ours' "$here/../converter/requirements.txt" > "$scratch/requirements.txt"
if ! python3 -m pip --disable-pip-version-check --quiet install --require-hashes --only-binary :all: --no-deps --no-cache-dir \
    --target "$scratch/numpy" -r "$scratch/requirements.txt" > "$scratch/log" 2>&1; then
  echo "numpy.sh: pip could not install numpy ($(grep -m1 -i error "$scratch/log" || tail -n 1 "$scratch/log")); check the network, or install numpy for $(command -v python3)" >&2
  exit 1
fi
# Somebody else may have made it meanwhile; theirs is as good.
[ -d "$folder" ] || mv "$scratch/numpy" "$folder"
echo "$folder"
