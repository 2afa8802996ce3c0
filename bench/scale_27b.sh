#!/usr/bin/env bash
# The sweep of Qwen3.5-27B on 64 ranks, simulated: the table of docs/scaling.md.
# Usage: scale_27b.sh NAMES.csv [SCALE_SIM] [OPTION]...
# NAMES.csv names the model's tensors in its first line: models/Qwen3.5-27B/kld_results.csv of Thireus/GGUF-Tool-Suite. With
# options of scale_sim only that one row is computed. A rank is a GPU with 16 cores: 239 TFLOP/s of replays as
# docs/performance.md has measured (27.5 TFLOP for a window of 512 tokens: 0.115 s), 40 million weights quantized per second
# (2.5 million a core, mean over all types).
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { echo "usage: scale_27b.sh NAMES.csv [SCALE_SIM] [OPTION]..." >&2; exit 2; }
names=$1 scale_sim=${2:-$source_dir/build/bench/scale_sim}
shift $(($# < 2 ? 1 : 2))

simulate() {
  "$scale_sim" --list "$names" --pass 0.115 --quantize-rate 40e6 --ranks 64 --stragglers 0.05 \
    --shape 'blk.*.ffn_down.weight=17408x5120' --shape 'blk.*.ffn_*.weight=5120x17408' \
    --shape 'blk.*.attn_qkv.weight=5120x10240' --shape 'blk.*.attn_gate.weight=5120x6144' \
    --shape 'blk.*.ssm_out.weight=6144x5120' --shape 'blk.*.ssm_*.weight=5120x48' \
    --shape 'blk.*.attn_q.weight=5120x12288' --shape 'blk.*.attn_[kv].weight=5120x1024' \
    --shape 'blk.*.attn_output.weight=6144x5120' --shape '*.weight=5120x248320' "$@"
}

if [ $# -gt 0 ]; then simulate "$@"; exit; fi
row() {
  echo "== $1"
  shift
  simulate "$@"
}
row "the sweep itself" --startup 0
row "the whole job, 20 s of loading in each rank" --startup 20
row "the same, on 32,768 tokens" --startup 20 --windows 64
row "the sweep itself, one rank to a machine: nobody shares states" --startup 0 --per-node 1
row "the whole job, two ranks die without a word" --startup 20 --failures 2
row "the same, and the job is started again each time" --startup 20 --failures 2 --restart
