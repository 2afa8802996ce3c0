#!/usr/bin/env bash
# Runs models_test.py with numpy and the gguf-py in FOLDER. Usage: run.sh FOLDER. Exit code 77: no numpy to be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
numpy=$(bash ../../scripts/numpy.sh) || exit 77
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$numpy${numpy:+:}$1 exec python3 models_test.py
