#!/usr/bin/env bash
# Quantizes the embedded model to three budgets and prints, for each, how the result compares with the source and with
# llama-quantize's stock presets. No download, no text needed: the model writes the text that it is measured on.
# Usage: demo.sh [OPTION]...   OPTIONs go to every `cerebellum quantize`, for example --threads 1
# Files go to demo/. A second run finds the measurements in demo/wikicode.db; `make clean` forgets them.
# Environment: CEREBELLUM (the program; default build/cerebellum)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/demo-lib.sh

model=models/wikicode-6.8M-f16.gguf
# Sizes of the files that llama-quantize v0.5.0 makes of this model as Q2_K_S, Q3_K_M and Q4_K_M with an importance
# matrix that is passed as `--imatrix imatrix.gguf` (the name is written into the file). bench/quality.py takes the
# presets' names and builds those files.
budgets=(2895040 3723968 4364992)
# Half of the program's default: the whole demo is to take less than four minutes on two cores.
tokens=2048

mkdir -p demo
for budget in "${budgets[@]}"; do
  run_budget "$model" demo/wikicode.db "demo/wikicode-$budget.gguf" "$budget" --tokens "$tokens" "$@"
done
print_summary
cat <<TEXT

The three budgets are the sizes of the stock presets Q2_K_S, Q3_K_M and Q4_K_M. The built files, their recipes (JSON, and
as type files for llama-quantize), the importance matrix and all figures (*.results.json) are in demo/.
The text was written by the model itself; bench/quality.py judges on a text of yours with llama-perplexity.
TEXT
