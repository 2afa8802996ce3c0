#!/usr/bin/env python3
"""Throughput of two ranks with a thread each against one process with one thread: what mpirun is worth on this machine.

    bench/ranks.py [--ranks 2] [--model M.gguf] [--tokens N] [--repeat 3] [--at-least 1.8] [--json]

Prints the ratio of the times that measuring takes (text and importance matrix are made before, by --prepare; what a command
takes that finds nothing left to measure is subtracted), and of whole commands, each the median of the repeats; fails where the
journals differ. Wants a machine that does nothing else.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

MPI = ["--oversubscribe", "--bind-to", "core", "--allow-run-as-root"]


def digest(cerebellum, journal):
    out = subprocess.run([cerebellum, "journal", "show", "--json", journal], check=True, capture_output=True, text=True).stdout
    return json.loads(out)["sha256"]


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default=str(next((root / "models").glob("*-f16.gguf"))))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--types", default="", help="default: all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cerebellum", default=str(root / "build" / "cerebellum"))
    parser.add_argument("--at-least", type=float, default=0.0, help="fail where measuring is not so many times as fast")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not shutil.which("mpirun"):
        sys.exit("ranks.py: mpirun is not there; scripts/system-packages.sh mpi installs it")
    with tempfile.TemporaryDirectory(prefix="cerebellum-ranks-") as scratch:
        folder = pathlib.Path(scratch)
        text = folder / "text.txt"
        text.write_text("".join((root / name).read_text() for name in ("LICENSE", "CONTRIBUTING.md", "docs/design.md",
                                                                       "docs/fast-tier.md", "docs/statistics.md")))
        ablate = [options.cerebellum, "ablate", options.model, "--text", str(text), "--tokens", str(options.tokens), "--ctx", "128",
                  "--threads", "1", "--json"] + (["--types", options.types] if options.types else [])
        prepared = folder / "prepared.db"
        subprocess.run(ablate + ["--prepare", "--journal", str(prepared)], check=True, stdout=subprocess.DEVNULL)
        walls, digests = {1: [], options.ranks: []}, set()
        for repeat in range(options.repeat):
            for ranks in walls:
                journal = folder / f"{ranks}-{repeat}.db"
                shutil.copy(prepared, journal)
                command = (["mpirun", "-n", str(ranks)] + MPI if ranks > 1 else []) + ablate + ["--journal", str(journal)]
                start = time.monotonic()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                whole_s = time.monotonic() - start
                # The same command with nothing left to measure is what is not measuring.
                start = time.monotonic()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                idle_s = time.monotonic() - start
                walls[ranks].append((whole_s, whole_s - idle_s))
                digests.add(digest(options.cerebellum, str(journal)))
                print(f"{ranks} rank(s): {whole_s:.1f} s, {whole_s - idle_s:.1f} s of them measuring", file=sys.stderr)
    if len(digests) != 1:
        sys.exit("ranks.py: the journals differ")
    median = {ranks: [statistics.median(times) for times in zip(*all_times)] for ranks, all_times in walls.items()}
    ratios = [median[1][i] / median[options.ranks][i] for i in (0, 1)]
    if options.json:
        print(json.dumps({"ranks": options.ranks, "command": ratios[0], "measuring": ratios[1]}))
    else:
        print(f"{options.ranks} ranks against one, a thread each: measuring {ratios[1]:.2f} x, whole command {ratios[0]:.2f} x")
    if ratios[1] < options.at_least:
        sys.exit(f"ranks.py: measuring is less than {options.at_least} x as fast")


if __name__ == "__main__":
    main()
