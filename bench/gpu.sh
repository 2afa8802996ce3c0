#!/usr/bin/env bash
# Measures models of real shape with random weights on a GPU: suffix replays against llama-bench's prompt processing, the
# naive loop on a few pairs, and what a limit on device memory costs.
# Usage: gpu.sh SHAPE FOLDER STEP...   with SHAPE as in bench/generate_model.py --like, and steps
#   generate       write the model to FOLDER
#   bench          llama-bench, prompts of one window
#   measure        ablate: K-quants, a sample of the blocks; again: the journal in FOLDER goes on
#   stream         the same of one block with and without --device-memory DEVICE_MEMORY: same figures, how much slower
#   profile        the kernels that the replays of that block take the GPU's time with (ncu; after measure)
#   speed          bench/speed.py with the naive loop on three pairs
# Settings: BIN (default build-gpu/bin), DEVICE (CUDA0), TOKENS (8192), TYPES, TENSORS (globs), DEVICE_MEMORY (12GB)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 3 ] || { sed -n 's/^# \?//p' "${BASH_SOURCE[0]}" | sed 1d; exit 2; }
shape=$1 folder=$2
shift 2
bin=${BIN:-build-gpu/bin} device=${DEVICE:-CUDA0} tokens=${TOKENS:-8192} types=${TYPES:-q2_K,q3_K,q4_K,q5_K,q6_K}
read -ra globs <<< "${TENSORS:-blk.3.* blk.10.* blk.17.* blk.24.* blk.31.* blk.38.* blk.45.* blk.52.* blk.59.*}"
sample=()
for glob in "${globs[@]}"; do sample+=(--tensors "$glob"); done
mkdir -p "$folder"
model=$folder/$shape.gguf
text=$folder/sources.txt
[ -f "$text" ] || cat cerebellum/*/*.cpp cerebellum/*/*.h > "$text"
common=(--text "$text" --ctx 512 --device "$device" --verbose)
started=$SECONDS
say() { echo "== $shape: $* ($((SECONDS - started)) s)"; }

without_measurements() {  # a copy of a journal: text and importance matrix come from the first run
  python3 -c 'import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b); b.execute("DELETE FROM measurement"); b.commit()' "$1" "$2"
}

peak_memory() {  # of the device while a command runs
  local log=$folder/memory.log
  nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader,nounits -lms 500 > "$log" & local watcher=$!
  "$@"
  kill "$watcher"
  awk -F, '{ if ($1 > peak) peak = $1; busy += $2; n++ } END { printf "peak device memory %d MiB, GPU busy %.0f %% of the time\n", peak, busy / n }' "$log" >&2
}

for step in "$@"; do
  case $step in
    generate) python3 bench/generate_model.py --like "$shape" "$model"; say "generated, $(du -BM "$model" | cut -f1)" ;;
    bench) "$bin/llama-bench" -m "$model" -p 512 -n 0 -ngl 999 -fa 0 -r 8 -o md 2>/dev/null | tail -n +3; say benchmarked ;;
    measure)
      peak_memory "$bin/cerebellum" ablate "$model" "${common[@]}" --tokens "$tokens" --types "$types" "${sample[@]}" \
        --journal "$folder/$shape.db" --json 2> >(grep -vE '%' >&2) > "$folder/$shape.json"
      say "measured $(grep -c '"tensor"' "$folder/$shape.json") pairs" ;;
    profile)
      without_measurements "$folder/$shape.db" "$folder/profile.db"
      ncu --csv --page raw --metrics gpu__time_duration.sum --clock-control none --log-file "$folder/kernels.csv" \
        "$bin/cerebellum" ablate "$model" "${common[@]}" --tokens "$tokens" --types q4_K --tensors "${globs[0]}" \
        --journal "$folder/profile.db" --json > "$folder/profile.json" 2> "$folder/profile.err"
      python3 bench/kernel_times.py "$folder/kernels.csv"
      say profiled ;;
    stream)
      for limit in none "${DEVICE_MEMORY:-12GB}"; do
        options=()
        [ "$limit" = none ] || options=(--device-memory "$limit")
        without_measurements "$folder/$shape.db" "$folder/stream-$limit.db"
        peak_memory "$bin/cerebellum" ablate "$model" "${common[@]}" --tokens "$tokens" --types q4_K,q2_K --tensors "${globs[0]}" "${options[@]}" \
          --journal "$folder/stream-$limit.db" --json 2> >(grep -vE '%' >&2) > "$folder/stream-$limit.json"
        say "with device memory: $limit"
      done
      cmp "$folder"/stream-*.json && echo "same figures" ;;
    speed)
      python3 bench/speed.py --source "$model" --bin "$bin" --cerebellum "$bin/cerebellum" --device "$device" --tokens "$tokens" \
        --types "$types" "${sample[@]}" --pairs 3 --no-naive-imatrix --json "$folder/speed-$shape.json"
      say "compared" ;;
    *) echo "gpu.sh: unknown step '$step'" >&2; exit 2 ;;
  esac
done
