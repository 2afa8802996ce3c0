#!/usr/bin/env python3
"""How well the damage of a whole recipe is foretold from the damages of its tensors one by one.

    bench/prediction.py --source models/wikicode-6.8M-f16.gguf --budgets 2.5bpw,3.25bpw,4.5bpw,6bpw \\
        --calibrate 2.35bpw,2.8bpw,3.7bpw,5.2bpw,6.6bpw

Recipes are solved for --calibrate and measured as wholes on the text that single damages were measured on; none of them
is scored. Then for each of --budgets a file is built and evaluated by libllama on held-out text, and compared with the sum
of its tensors' damages and with that sum after calibration. What is measured is kept in --journal and reused.
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


def cerebellum(options, *arguments):
    command = [options.cerebellum, *map(str, arguments)]
    say(" ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise JudgeError(f"cerebellum {arguments[0]} failed with exit code {done.returncode} (its message is above)")
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def percent(predicted, measured):
    return f"{100.0 * (predicted / measured - 1.0):+.1f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="high-precision GGUF")
    parser.add_argument("--budgets", required=True, help="sizes that are scored, comma-separated")
    parser.add_argument("--calibrate", required=True, help="sizes whose recipes are measured as wholes, comma-separated")
    parser.add_argument("--journal", help="default build/prediction/<source>.db")
    parser.add_argument("--option", action="append", default=[], help="for every measuring command, as --option=--ctx=256")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    budgets, calibrate = options.budgets.split(","), options.calibrate.split(",")
    if overlap := set(budgets) & set(calibrate):
        parser.error(f"{', '.join(sorted(overlap))} cannot be calibrated by and scored")
    journal = pathlib.Path(options.journal or f"build/prediction/{pathlib.Path(options.source).stem}.db")
    journal.parent.mkdir(parents=True, exist_ok=True)
    measuring = ["--journal", journal, "--threads", options.threads, *options.option]

    cerebellum(options, "interactions", options.source, "--measure", "recipes", "--sizes", options.calibrate, "--json",
               *measuring)
    with tempfile.TemporaryDirectory(prefix="cerebellum-prediction-") as scratch:
        files = []
        for budget in budgets:
            recipe = pathlib.Path(scratch, f"{budget}.json")
            cerebellum(options, "allocate", options.source, "--size", budget, "-o", recipe, "--journal", journal)
            files.append(recipe.with_suffix(".gguf"))
            cerebellum(options, "build", options.source, "--recipe", recipe, "--imatrix", recipe.with_suffix(".imatrix.gguf"),
                       "-o", files[-1], "--threads", options.threads)
        rows = cerebellum(options, "verify", options.source, *files, "--json", *measuring)
    print("| budget | measured on held-out text | sum of damages | off by | after calibration | off by |")
    print("|---|--:|--:|--:|--:|--:|")
    for budget, row in zip(budgets, rows):
        print(f"| {budget} | {row['kld']:.5f} ± {row['kld_error']:.5f} | {row['predicted_kld']:.5f} | "
              f"{percent(row['predicted_kld'], row['kld'])} | {row['calibrated_kld']:.5f} ± "
              f"{row['calibrated_kld_error']:.5f} | {percent(row['calibrated_kld'], row['kld'])} |")
    worst = [max(abs(row[key] / row["kld"] - 1.0) for row in rows) for key in ("predicted_kld", "calibrated_kld")]
    print(f"\nLargest deviation: {100.0 * worst[0]:.1f} % before, {100.0 * worst[1]:.1f} % after calibration.")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps([{"budget": b, **r} for b, r in zip(budgets, rows)], indent=1))


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError) as error:
        say(f"prediction.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
