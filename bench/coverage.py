#!/usr/bin/env python3
"""Checks on a measured journal how often stated 95 % intervals cover what they should.

    cerebellum ablate MODEL --tokens 4096 --ctx 128 --full --types q2_K,q3_K,q4_K,q6_K,iq3_xxs --journal many-windows.db
    bench/coverage.py many-windows.db

Every tensor × type pair of the journal whose full figure has at least --windows × 2 windows is taken; with --tier fast the
local energies instead. For each, windows are drawn at random many times:

held out    --windows of them make an estimate with its interval, as `cerebellum explain` states it; the others make
            another estimate. Covered: zero lies in the 95 % interval of the difference, whose variance is the
            sample's, s², times 1/n + 1/m (m windows held out): the stated interval, widened for the held-out mean's own
            error.
resampled   --windows of them are drawn with replacement; covered: the mean of all the pair's windows lies in the stated
            interval.

Intervals are mean ± t · error with n − 1 degrees of freedom, error clustered by window (docs/statistics.md), and, to
compare, the same with the normal distribution's 1.96. KLD and, where there are any, ΔNLL are judged. Prints a table, or
with --json the figures.
"""

import argparse
import json
import math
import pathlib
import random
import sqlite3
import struct
import sys


class BenchError(Exception):
    """One line: what failed, where, what to do."""


# 97.5 % quantiles of Student's t, by degrees of freedom.
T_QUANTILES = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622,
               10: 2.2281, 11: 2.2010, 12: 2.1788, 13: 2.1604, 14: 2.1448, 15: 2.1314, 19: 2.0930, 23: 2.0687, 31: 2.0395}


def doubles(blob):
    return struct.unpack(f"<{len(blob) // 8}d", blob)


def read_pairs(path, tier):
    if not pathlib.Path(path).is_file():
        raise BenchError(f"{path}: there is no such journal; measure one with 'cerebellum ablate'")
    columns = "local_energy, local_counts, x''" if tier == "fast" else "kld, counts, delta_nll"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        rows = database.execute(f"SELECT tensor, type, {columns} FROM measurement WHERE tier = ?", (tier,)).fetchall()
    pairs = {}
    for tensor, kind, sums, counts, nll in rows:
        pairs[tensor, kind] = {"counts": doubles(counts), "KLD" if tier == "full" else "energy": doubles(sums)}
        if nll:
            pairs[tensor, kind]["ΔNLL"] = doubles(nll)
    return pairs


def estimate(windows):
    """Mean and standard error of (sum, count) pairs, clustered by window."""
    count = sum(c for _, c in windows)
    mean = sum(s for s, _ in windows) / count
    n = len(windows)
    squares = sum((s - mean * c) ** 2 for s, c in windows)
    return mean, math.sqrt(n / (n - 1) * squares) / count


def judge(windows, n, draws, generator):
    """Counts of draws that are covered: held out with t and normal quantile, resampled with t."""
    t = T_QUANTILES[n - 1]
    truth = sum(s for s, _ in windows) / sum(c for _, c in windows)
    m = len(windows) - n
    covered = [0, 0, 0]
    for _ in range(draws):
        order = generator.sample(windows, len(windows))
        mean, error = estimate(order[:n])
        other = sum(s for s, _ in order[n:]) / sum(c for _, c in order[n:])
        wide = error * math.sqrt(1.0 + n / m)
        covered[0] += abs(mean - other) <= t * wide
        covered[1] += abs(mean - other) <= 1.96 * wide
        mean, error = estimate(generator.choices(windows, k=n))
        covered[2] += abs(mean - truth) <= t * error
    return covered


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal")
    parser.add_argument("--tier", choices=("full", "fast"), default="full")
    parser.add_argument("--windows", default="4,8,16", help="sizes of samples, comma-separated (default: 4,8,16)")
    parser.add_argument("--draws", type=int, default=200, help="draws for each pair (default: 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = read_pairs(options.journal, options.tier)
    generator = random.Random(options.seed)
    results = []
    for n in (int(part) for part in options.windows.split(",")):
        if n - 1 not in T_QUANTILES:
            raise BenchError(f"--windows {n}: choose among {', '.join(str(dof + 1) for dof in T_QUANTILES)}")
        for quantity in ("KLD", "ΔNLL", "energy"):
            usable = [list(zip(row[quantity], row["counts"])) for row in pairs.values()
                      if quantity in row and len(row["counts"]) >= 2 * n]
            usable = [windows for windows in usable if any(s != 0.0 for s, _ in windows)]
            if not usable:
                continue
            covered = [judge(windows, n, options.draws, generator) for windows in usable]
            rates = [sum(c[i] for c in covered) / (len(usable) * options.draws) for i in range(3)]
            results.append({"quantity": quantity, "windows": n, "of": len(usable[0]), "pairs": len(usable),
                            "held_out": rates[0], "held_out_normal": rates[1], "resampled": rates[2]})
    if not results:
        raise BenchError(f"{options.journal}: no {options.tier} figure has twice as many windows as the smallest sample; "
                         "measure more windows (more --tokens, or a smaller --ctx)")
    if options.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
        return
    print("| quantity | windows | of | pairs | held out, t | held out, 1.96 | resampled, t |\n|---|--:|--:|--:|--:|--:|--:|")
    for row in results:
        print(f"| {row['quantity']} | {row['windows']} | {row['of']} | {row['pairs']} | {100 * row['held_out']:.1f} % | "
              f"{100 * row['held_out_normal']:.1f} % | {100 * row['resampled']:.1f} % |")


if __name__ == "__main__":
    try:
        main()
    except (BenchError, sqlite3.Error) as error:
        sys.exit(f"coverage.py: {error}")
