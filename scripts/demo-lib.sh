# What demo.sh, demo-smollm2.sh and demo-qwen.sh share; sourced from the root of the repository.
# Provides: run_budget MODEL JOURNAL OUTPUT BUDGET [OPTION]..., print_summary, first_gpu
program=${CEREBELLUM:-build/cerebellum}
if [ ! -x "$program" ]; then
  echo "$program is not there; run 'make build' first" >&2
  exit 1
fi
summary=()

# One run of `quantize`. Its table goes to stdout and, for the summary, into OUTPUT.table.txt.
run_budget() {
  local model=$1 journal=$2 output=$3 budget=$4
  shift 4
  echo
  echo "== $(basename "$model") to $budget"
  "$program" quantize "$model" --size "$budget" -o "$output" --journal "$journal" --force "$@" | tee "${output%.gguf}.table.txt" || {
    # Also where the program has been updated or an option changed since the journal was begun.
    echo "If it is the journal that does not fit: rm $journal*, and run this again." >&2
    exit 1
  }
  summary+=("$(summary_line "$output" "$budget")")
}

# OUTPUT BUDGET: one line from a table. A row is: name, size, unit, bpw, KLD, ±, error, ... and a note.
summary_line() {
  awk -v output="$1" -v budget="$2" '
    /^source / || !/ ± .* ± / { next }
    { for (at = 1; $at != "±"; ++at) {}
      kld = $(at - 1); error = $(at + 1); bytes = $(at - 4) " " $(at - 3)
      name = $1; for (i = 2; i < at - 4; ++i) name = name " " $i }
    /delivered/ { delivered = name; delivered_bytes = bytes }
    name == "cerebellum" { ours = kld; ours_error = error; next }
    /over budget/ { next }
    best == "" || kld < best { best = kld; best_name = name }
    END {
      printf "%-12s %-34s %-9s %s ± %s", budget, output, delivered_bytes, ours, ours_error
      if (best == "") printf "   no stock file fits"
      else if (best > 0) printf "   %s: %s, ours %.0f %% lower", best_name, best, 100 * (1 - ours / best)
      if (delivered != "cerebellum") printf " (delivered: %s, better on the selection text)", delivered
      printf "\n"
    }' "${1%.gguf}.table.txt"
}

print_summary() {
  echo
  echo "== Summary: KLD from the source in nats per token (± standard error), and the best stock file of at most the size"
  printf '%s\n' "${summary[@]}"
}

# The name of the first GPU that the program can use; nothing where there is none. What else ails the machine (doctor's
# exit code) does not matter here.
first_gpu() {
  { "$program" doctor --json || true; } | python3 -c 'import json, sys
print(next((device["name"] for device in json.load(sys.stdin)["devices"] if device["kind"] == "GPU"), ""))'
}
