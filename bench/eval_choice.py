#!/usr/bin/env python3
"""Times `cerebellum eval choice` against llama-perplexity --hellaswag on the same tasks and threads, in turn, and MMLU with
five examples with and without shared prefixes.

Usage: choice_speed.py MODEL.gguf --cerebellum PROGRAM --llama-bin FOLDER --data FOLDER
                       [--tasks 100] [--mmlu 57] [--threads 1] [--repetitions 3]
--data is a folder of scripts/fetch-data. Prints the ratios of the medians, and whether the scores are the same.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time


def timed(command):
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.monotonic() - begun, done


def cerebellum(options, benchmark, count, out, *more):
    seconds, done = timed([options.cerebellum, "eval", "choice", benchmark, options.model, "--count", str(count), "--data",
                           options.data, "--out", out, "--threads", str(options.threads), "--json", "-q", *more])
    return seconds, json.loads(done.stdout)[0]


def hellaswag(options):
    ours, theirs, scores = [], [], set()
    for _ in range(options.repetitions):
        seconds, done = timed([f"{options.llama_bin}/llama-perplexity", "-m", options.model, "-f",
                               f"{options.data}/hellaswag_val_full.txt", "--hellaswag", "--hellaswag-tasks",
                               str(options.tasks), "-t", str(options.threads), "--no-repack"])
        theirs.append(seconds)
        running = re.findall(rf"^{options.tasks}\t([0-9.]+)%", done.stdout + done.stderr, re.MULTILINE)
        scores.add(round(float(running[-1]), 6))
        with tempfile.TemporaryDirectory() as out:
            seconds, summary = cerebellum(options, "hellaswag", options.tasks, out)
        ours.append(seconds)
        scores.add(round(100 * summary["metrics"]["llama_perplexity"]["score"], 6))
    print(f"hellaswag, {options.tasks} tasks: llama-perplexity {statistics.median(theirs):.2f} s, "
          f"cerebellum {statistics.median(ours):.2f} s, ratio {statistics.median(theirs) / statistics.median(ours):.2f}, "
          f"scores {'the same' if len(scores) == 1 else 'DIFFERENT'} ({', '.join(f'{s:.2f}' for s in sorted(scores))})")


def mmlu(options):
    shared, alone, differing = [], [], 0
    for _ in range(options.repetitions):
        picks = []
        for figures, more in ((shared, []), (alone, ["--no-shared-prefixes"])):
            with tempfile.TemporaryDirectory() as out:
                seconds, summary = cerebellum(options, "mmlu", options.mmlu, out, "--shots", "5", *more)
                lines = pathlib.Path(summary["log"]).read_text(encoding="utf-8").splitlines()[1:]
            figures.append(seconds)
            picks.append({record["id"]: record["parsed"] for record in map(json.loads, lines)})
        differing = sum(picks[0][key] != picks[1][key] for key in picks[0])
    print(f"mmlu 5-shot, {options.mmlu} questions: every choice by itself {statistics.median(alone):.2f} s, shared prefixes "
          f"{statistics.median(shared):.2f} s, ratio {statistics.median(alone) / statistics.median(shared):.2f}, "
          f"{differing} answers differ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--cerebellum", default="build/cerebellum")
    parser.add_argument("--llama-bin", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--mmlu", type=int, default=57)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if options.tasks > 0:
        hellaswag(options)
    if options.mmlu > 0:
        mmlu(options)


if __name__ == "__main__":
    main()
