#!/usr/bin/env python3
"""What `cerebellum quantize --rounds` gains: KLD on held-out text with and without it, at several sizes.

    bench/rounds.py --source models/wikicode-6.8M-f16.gguf --rounds 2 2.75bpw 3.5bpw 4.5bpw

Both recipes of a size are replayed on the same windows, so the difference and its error are paired. What is measured is
kept in --journal and reused.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, say  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="high-precision GGUF")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--journal", help="default build/rounds/<source>.db")
    parser.add_argument("--option", action="append", default=[], help="passed on to cerebellum quantize, as --option=--ctx=256")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("sizes", nargs="+", metavar="SIZE")
    options = parser.parse_args()
    journal = pathlib.Path(options.journal or f"build/rounds/{pathlib.Path(options.source).stem}.db")
    journal.parent.mkdir(parents=True, exist_ok=True)
    print("| size | rounds | changes tried | tensors changed | gain where measured | gain on held-out text | KLD there |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="cerebellum-rounds-") as scratch:
            command = [options.cerebellum, "quantize", options.source, "--size", size, "-o", f"{scratch}/out.gguf", "--rounds",
                       str(options.rounds), "--journal", str(journal), "--threads", str(options.threads), "--json",
                       *options.option]
            say(" ".join(command))
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise JudgeError(f"cerebellum quantize failed with exit code {done.returncode} (its message is above)")
        result = json.loads(done.stdout)
        rounds, gain = result["rounds"], result["rounds_gain"]
        taken = [entry for entry in rounds if entry["taken"]]
        delivered = next(row for row in result["files"] if row["name"] == result["delivered"])
        print(f"| {size} | {len(rounds)} | {sum(entry['tried'] for entry in rounds)} | "
              f"{sum(entry['changed'] for entry in taken)} | {sum(entry['kld_gain']['mean'] for entry in taken):.5f} | "
              f"{gain['mean']:.5f} ± {gain['error']:.5f} | {delivered['kld']['mean']:.5f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError) as error:
        say(f"rounds.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
