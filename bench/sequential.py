#!/usr/bin/env python3
"""Compares measuring sequentially with measuring everything on all windows: tokens, and the quality of the recipes.

    bench/sequential.py --source models/wikicode-6.8M-f16.gguf --tokens 4096 --ctx 256 --sizes 2.8bpw,3.5bpw,4.5bpw,6bpw

Runs `cerebellum ablate` once as it is and once for every size with --sequential, all on the same text and importance matrix (a
copy of the first journal without its measurements). For every size both journals are allocated, both recipes built, and
both files judged by `cerebellum verify` on the held-out part of the text. Tokens are the windows in the journals' rows.
Everything stays in --work, so that an interrupted comparison goes on where it stopped. Prints a table.
"""

import argparse
import json
import pathlib
import sqlite3
import subprocess
import sys


class BenchError(Exception):
    """One line: what failed, where, what to do."""


def run(options, arguments, capture=False):
    command = [options.cerebellum, *map(str, arguments)]
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise BenchError(f"cerebellum {arguments[0]} failed with exit code {done.returncode} (its message is above)")
    return json.loads(done.stdout) if capture else None


def measuring(options, journal):
    arguments = ["--tokens", options.tokens, "--ctx", options.ctx, "--threads", options.threads, "--seed", options.seed,
                 "--journal", journal]
    for text in options.text:
        arguments += ["--text", text]
    return arguments


def copy_without_measurements(source, target):
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with sqlite3.connect(source) as a, sqlite3.connect(partial) as b:
        a.backup(b)
        b.execute("DELETE FROM measurement")
    a.close()
    b.close()
    partial.replace(target)


def tokens_of(journal, context):
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
        windows = database.execute("SELECT SUM(LENGTH(CASE tier WHEN 'fast' THEN local_counts ELSE counts END) / 8) "
                                   "FROM measurement").fetchone()[0]
    return windows * context


def judge(options, journal, work, size):
    """The recipe's predicted KLD, and its measured one on the held-out text."""
    recipe, built = work / f"{journal.stem}-{size}.json", work / f"{journal.stem}-{size}.gguf"
    run(options, ["allocate", options.source, "--size", size, "--journal", journal, "-o", recipe, "--force"])
    run(options, ["build", options.source, "--recipe", recipe, "--imatrix", recipe.with_suffix(".imatrix.gguf"), "-o", built,
                  "--threads", options.threads, "--force"])
    figures = run(options, ["verify", options.source, built, "--json", *measuring(options, journal)], capture=True)[0]
    built.unlink()
    return json.loads(recipe.read_text())["predicted_kld"], figures["kld"], figures["kld_error"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--cerebellum", default="build/cerebellum")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default="2.8bpw,3.5bpw,4.5bpw,6bpw")
    parser.add_argument("--work", default="build/sequential")
    options = parser.parse_args()
    work = pathlib.Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    fixed = work / "fixed.db"
    run(options, ["ablate", options.source, *measuring(options, fixed)])
    all_tokens = tokens_of(fixed, options.ctx)
    print("| size | tokens, fixed | tokens, sequential | | KLD, fixed | KLD, sequential | |\n|---|--:|--:|--:|--:|--:|--:|")
    for size in options.sizes.split(","):
        journal = work / f"sequential-{size}.db"
        if not journal.exists():
            copy_without_measurements(fixed, journal)
        run(options, ["ablate", options.source, "--sequential", "--size", size, *measuring(options, journal)])
        tokens = tokens_of(journal, options.ctx)
        _, kld, error = judge(options, fixed, work, size)
        _, other, other_error = judge(options, journal, work, size)
        print(f"| {size} | {all_tokens} | {tokens} | {100 * tokens / all_tokens:.0f} % | {kld:.5f} ± {error:.5f} | "
              f"{other:.5f} ± {other_error:.5f} | {100 * (other / kld - 1):+.1f} % |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (BenchError, sqlite3.Error, OSError) as error:
        sys.exit(f"sequential.py: {error}")
