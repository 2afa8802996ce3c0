#!/usr/bin/env bash
# Builds the documentation as a site with search, in build/site; dead links and pages that are in no menu are errors.
# Usage: docs.sh
# MkDocs is installed once, in the versions and with the hashes of docs/site/requirements.txt, in CEREBELLUM_CACHE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/system-packages.sh pip
list=docs/site/requirements.txt
environment=${CEREBELLUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cerebellum}/docs-$(sha256sum "$list" | cut -c1-12)
if [ ! -f "$environment/complete" ]; then
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$list"
  touch "$environment/complete"
fi
"$environment/bin/python" -m mkdocs --quiet build --clean
echo "build/site; to search in it: python3 -m http.server -d build/site"
