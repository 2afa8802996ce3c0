#!/usr/bin/env python3
"""Times `cerebellum eval speed` against llama-bench on the same file and threads, in turn.

Usage: eval_speed.py MODEL.gguf --cerebellum PROGRAM --llama-bin FOLDER
                     [--prompt 512] [--generate 128] [--threads 1] [--rounds 3] [--repetitions 3]
Prints the medians of both over all rounds, their spread, and the ratio.
"""

import argparse
import json
import statistics
import subprocess


def printed(command):
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--cerebellum", default="build/cerebellum")
    parser.add_argument("--llama-bin", required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = {"prompt": [], "generation": []}, {"prompt": [], "generation": []}
    for _ in range(options.rounds):
        for test in printed([f"{options.llama_bin}/llama-bench", "-m", options.model, "-t", str(options.threads), "-p",
                             str(options.prompt), "-n", str(options.generate), "-r", str(options.repetitions), "-o",
                             "json"]):
            theirs["prompt" if test["n_prompt"] > 0 else "generation"] += test["samples_ts"]
        file = printed([options.cerebellum, "eval", "speed", options.model, "--threads", str(options.threads), "--prompt",
                        str(options.prompt), "--generate", str(options.generate), "--repetitions",
                        str(options.repetitions), "--json", "-q"])["files"][0]
        for key, figures in ours.items():
            figures += file[f"{key}_per_second"]["figures"]
    for key in ours:
        medians = [statistics.median(figures[key]) for figures in (theirs, ours)]
        spreads = [statistics.stdev(figures[key]) for figures in (theirs, ours)]
        print(f"{key}: llama-bench {medians[0]:.2f} ± {spreads[0]:.2f} t/s, cerebellum {medians[1]:.2f} ± "
              f"{spreads[1]:.2f} t/s, ratio {medians[1] / medians[0]:.3f}")


if __name__ == "__main__":
    main()
