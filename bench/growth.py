#!/usr/bin/env python3
"""How the cost of measuring grows with layers, tensors, tokens and bytes of a model.

    bench/growth.py [--types q4_0,q2_K] [--json FILE]

Measures generated models (bench/generate_model.py) of 4, 8, 16 and 32 layers, and one of them on more tokens, and prints
time, replayed arithmetic and time per pair. The fast tier replays a block per pair and so grows with the tensors; its
anchors, like any full measurement, replay everything behind their tensor and so grow with tensors times layers.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, say  # noqa: E402
from speed import SUMMARY, default_text, seconds_of, timed  # noqa: E402


def exponent(rows, key, over):
    """Slope of log(key) over log(over) between the first and the last row."""
    return math.log(rows[-1][key] / rows[0][key]) / math.log(rows[-1][over] / rows[0][over])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="4,8,16,32")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--types", default="q2_K,q4_0,q4_K,q6_K")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    layers = [int(count) for count in options.layers.split(",")]
    settings = [(count, options.tokens) for count in layers] + [(layers[1], factor * options.tokens) for factor in (2, 4)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="cerebellum-growth-") as scratch:
        folder = pathlib.Path(scratch)
        text = default_text(folder)
        for count, tokens in settings:
            source = folder / f"{count}.gguf"
            if not source.is_file():
                subprocess.run([sys.executable, str(pathlib.Path(__file__).parent / "generate_model.py"), "--layers", str(count),
                                "--width", str(options.width), "--vocab", str(options.vocab), str(source)], check=True)
            command = [options.cerebellum, "ablate", source, "--json", "--text", text, "--tokens", tokens, "--ctx", options.ctx,
                       "--types", options.types, "--threads", options.threads, "--journal", folder / f"{count}-{tokens}.db"]
            say(" ".join(map(str, command)))
            wall_s, peak_bytes, out, err = timed(command, folder, f"{count}-{tokens}")
            measured = json.loads(out.read_text())
            summary = SUMMARY.search(err.read_text(errors="replace"))
            if not summary:
                raise JudgeError("cerebellum ablate did not print the FLOPs that it replayed")
            rows.append({"layers": count, "tensors": len({row["tensor"] for row in measured}), "bytes": source.stat().st_size,
                         "tokens": tokens, "pairs": len(measured), "wall_s": wall_s, "tflop": float(summary.group(1)),
                         "replay_s": seconds_of(summary.group(2)), "peak_bytes": peak_bytes})
    print("\n layers  tensors     MB  tokens  pairs  seconds  s/pair   TFLOP  GFLOP/s  peak MiB")
    for row in rows:
        print(f"{row['layers']:7} {row['tensors']:8} {row['bytes'] / 1e6:6.0f} {row['tokens']:7} {row['pairs']:6} {row['wall_s']:8.1f} "
              f"{row['wall_s'] / row['pairs']:7.3f} {row['tflop']:7.1f} {row['tflop'] * 1000 / row['replay_s']:8.1f} "
              f"{row['peak_bytes'] / 2**20:9.0f}")
    by_layers, by_tokens = rows[:len(layers)], [rows[1], *rows[len(layers):]]
    print(f"  time grows with layers^{exponent(by_layers, 'wall_s', 'layers'):.2f} from {layers[0]} to {layers[-1]} layers, "
          f"with tokens^{exponent(by_tokens, 'wall_s', 'tokens'):.2f}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError, subprocess.CalledProcessError) as error:
        say(f"growth.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
