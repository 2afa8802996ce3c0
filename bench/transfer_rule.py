#!/usr/bin/env python3
"""How well a tensor's damage in one type is predicted from that in another, on published per-tensor measurements.

Usage: transfer_rule.py CEREBELLUM FOLDER... [--to TYPE] [--from TYPE,TYPE]

FOLDER has a kld_results.csv with a row of each type (docs/imports.md). The rule is that of `allocate --sensitivity`:
damage in proportion to ggml's rounding error, with the figures that `cerebellum import --json` prints.
"""

import argparse
import json
import math
import pathlib
import subprocess


def rank_correlation(a, b):
    order = [{name: i for i, name in enumerate(sorted(x, key=x.get))} for x in (a, b)]
    n = len(a)
    return 1 - 6 * sum((order[0][name] - order[1][name]) ** 2 for name in a) / (n * (n * n - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cerebellum")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--to", default="q2_k_r4")
    parser.add_argument("--from", dest="sources", default="iq1_m,iq1_kt")
    options = parser.parse_args()
    for folder in options.folders:
        printed = subprocess.run([options.cerebellum, "import", str(folder), "--metric", "kld", "--json"], check=True,
                                 capture_output=True, text=True).stdout
        table = json.loads(printed)
        errors = table["rounding_errors"]
        kld = {}
        for row in table["rows"]:
            kld.setdefault(row["type"], {})[row["tensor"]] = row["kld"]
        measured = kld[options.to]
        for source in options.sources.split(","):
            predicted = {name: value * errors[options.to] / errors[source]
                         for name, value in kld[source].items() if name in measured}
            both = {name: measured[name] for name in predicted}
            ratios = sorted(math.log(both[name] / predicted[name]) for name in predicted)
            low, middle, high = (math.exp(ratios[int(q * len(ratios))]) for q in (0.1, 0.5, 0.9))
            print(f"{folder.name}: {source} to {options.to}, {len(both)} tensors: rank correlation "
                  f"{rank_correlation(predicted, both):.3f}, measured/predicted {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
