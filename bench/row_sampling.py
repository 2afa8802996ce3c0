#!/usr/bin/env python3
"""Compares damage measured on a sample of each matrix's rows with the same measured on all rows.

    bench/row_sampling.py --source models/wikicode-6.8M-f16.gguf --text train.txt --work build/row-sampling

Runs `cerebellum ablate` twice with the same text, as it is and with --all-rows, and prints by type, over the tensors that
are sampled: how many, Spearman's rank correlation, the geometric mean of sampled / whole (the bias), the spread of that
ratio (standard deviation of its logarithm), and how often the whole figure lies in the 95 % interval that the sampled
one states (`error` in --json, of the logarithm). With --budgets the recipes of both journals are built for these sizes
and judged on --test-text by llama-perplexity (--bin). Journals stay in --work, so that an interrupted comparison goes on.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, say  # noqa: E402


def ablate(options, name, extra):
    work = pathlib.Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    command = [options.cerebellum, "ablate", options.source, "--json", "--tokens", str(options.tokens), "--journal",
               str(work / f"{name}.db"), *[part for text in options.text for part in ("--text", text)], *options.option, *extra]
    for option in ("ctx", "threads", "types", "device"):
        if getattr(options, option) is not None:
            command += [f"--{option}", str(getattr(options, option))]
    say(" ".join(map(str, command)))
    started = time.monotonic()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise JudgeError(f"cerebellum ablate failed with exit code {done.returncode} (its message is above)")
    say(f"{name}: {time.monotonic() - started:.1f} s")
    rows = json.loads(done.stdout)
    rows = rows["rows"] if isinstance(rows, dict) and "rows" in rows else rows
    return {(row["tensor"], row["type"]): row for row in rows if row["tier"] == "fast"}


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    for rank, index in enumerate(order):
        result[index] = float(rank)
    return result


def correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def energy(row):
    value = row["local_energy"]
    return value["mean"] if isinstance(value, dict) else value


def compare(sampled, whole):
    by_type = {}
    for key, row in sampled.items():
        other = whole.get(key)
        if other is None or energy(row) == energy(other) or energy(row) <= 0.0 or energy(other) <= 0.0:
            continue
        by_type.setdefault(key[1], []).append((key[0], energy(row), energy(other)))
    print("| type | tensors | Spearman | bias | spread of the ratio |\n|---|--:|--:|--:|--:|")
    everything = []
    for name, rows in sorted(by_type.items()):
        logs = [math.log(a / b) for _, a, b in rows]
        everything += logs
        mean = sum(logs) / len(logs)
        spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / max(1, len(logs) - 1))
        rank = correlation(ranks([a for _, a, _ in rows]), ranks([b for _, _, b in rows])) if len(rows) > 2 else float("nan")
        print(f"| {name} | {len(rows)} | {rank:.4f} | {100 * (math.exp(mean) - 1):+.2f} % | {100 * spread:.2f} % |")
    if not everything:
        raise JudgeError("no pair was sampled: matrices of this model have too few rows")
    mean = sum(everything) / len(everything)
    spread = math.sqrt(sum((x - mean) ** 2 for x in everything) / len(everything))
    print(f"| all | {len(everything)} | | {100 * (math.exp(mean) - 1):+.2f} % | {100 * spread:.2f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cerebellum", default="build/cerebellum")
    parser.add_argument("--source", required=True)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--work", default="build/row-sampling")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--ctx", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--types")
    parser.add_argument("--device")
    parser.add_argument("--option", action="append", default=[], help="passed on to ablate")
    options = parser.parse_args()
    compare(ablate(options, "sampled", []), ablate(options, "whole", ["--all-rows"]))


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError, json.JSONDecodeError) as error:
        sys.exit(f"row_sampling.py: {error}")
