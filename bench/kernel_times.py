#!/usr/bin/env python3
"""Sums up what Nsight Compute measured, by kernel: where the GPU's time goes.

    ncu --csv --page raw --metrics gpu__time_duration.sum --log-file kernels.csv PROGRAM ...
    bench/kernel_times.py kernels.csv
"""

import argparse
import collections
import csv
import re

SECONDS = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3, "s": 1.0, "second": 1.0}


def short(name):
    """Without what a call's types and sizes add: 'void mul_mat<float, 4>(...)' is mul_mat; cuBLAS' tiles are one product."""
    name = re.sub(r"^void |\(.*$|<.*$", "", name)
    return "matrix products (cuBLAS)" if re.match(r"nvjet|cublas|sm\d+_xmma|cutlass|ampere_|void cutlass|gemm", name) else name


def read(path):
    """(kernel, seconds) of every launch."""
    with open(path, newline="") as file:
        lines = [line for line in file if line.startswith('"')]
    rows = csv.reader(lines)
    header, units = next(rows), next(rows)
    name = header.index("Kernel Name")
    duration = next(i for i, column in enumerate(header) if column.startswith("gpu__time_duration"))
    factor = SECONDS[units[duration]]
    for row in rows:
        yield row[name], float(row[duration].replace(",", "")) * factor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--top", type=int, default=12)
    options = parser.parse_args()
    seconds, launches = collections.Counter(), collections.Counter()
    for name, duration in read(options.file):
        seconds[short(name)] += duration
        launches[short(name)] += 1
    whole = sum(seconds.values())
    print(f"{sum(launches.values())} launches, {whole:.2f} s\n\n| kernel | launches | seconds | share |\n|---|--:|--:|--:|")
    for name, duration in seconds.most_common(options.top):
        print(f"| {name} | {launches[name]} | {duration:.3f} | {100 * duration / whole:.1f} % |")


if __name__ == "__main__":
    main()
