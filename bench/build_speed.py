#!/usr/bin/env python3
"""Times building: `cerebellum build --preset P` against `llama-quantize P`, same source, types, threads and disk.

    bench/build_speed.py --source SRC-f16.gguf --bin "$(make -s llama-bin)" [--preset Q4_K_M] [--threads 2] [--rounds 5]

Wall time of the whole command, both in turns; ours includes fsync, llama-quantize has none. Peak memory is the largest
resident set (ru_maxrss), pages of mapped files included. The two files have to be the same to the byte, or nothing is
reported. Each round writes over the file of the round before; a first round, which reads the source into the page
cache, is not counted.
"""

import argparse
import filecmp
import json
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, say, tool  # noqa: E402
from speed import timed  # noqa: E402

MIB = 1024 * 1024


def commands(options, folder):
    imatrix = ["--imatrix", pathlib.Path(options.imatrix).absolute()] if options.imatrix else []
    source = pathlib.Path(options.source).absolute()
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    return {
        "cerebellum": (ours, [pathlib.Path(options.cerebellum).absolute(), "build", source, "--preset", options.preset,
                              "--no-provenance", "-o", ours, "--force", "--quiet", "--threads", options.threads, *imatrix]),
        "llama-quantize": (theirs, [tool(options.bin, "llama-quantize"), "--allow-requantize", *imatrix, source, theirs,
                                    options.preset, options.threads]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="the model to build from")
    parser.add_argument("--bin", required=True, help="folder with llama-quantize")
    parser.add_argument("--cerebellum", default="build/cerebellum")
    parser.add_argument("--preset", default="Q4_K_M")
    parser.add_argument("--imatrix", help="importance matrix for both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the files are written (default: a temporary folder)")
    parser.add_argument("--json", help="write all figures here")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds has to be at least 1")
    try:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="build-speed-") as name:
            folder = pathlib.Path(name)
            runs = commands(options, folder)
            seconds = {name: [] for name in runs}
            peaks = {name: [] for name in runs}
            for i in range(options.rounds + 1):
                for name, (_, command) in runs.items():
                    wall_s, peak, _, _ = timed(command, folder, name)
                    if i > 0:
                        seconds[name].append(wall_s)
                        peaks[name].append(peak)
                say(f"round {i} of {options.rounds}" + (" (not counted)" if i == 0 else ""))
            ours, theirs = (runs[name][0] for name in ("cerebellum", "llama-quantize"))
            if not filecmp.cmp(ours, theirs, shallow=False):
                raise JudgeError("the two files differ, so their times cannot be compared")
            size = ours.stat().st_size
    except JudgeError as error:
        print(f"build_speed.py: {error}", file=sys.stderr)
        return 1
    median = {name: statistics.median(values) for name, values in seconds.items()}
    peak = {name: statistics.median(values) for name, values in peaks.items()}
    print(f"{options.preset} of {pathlib.Path(options.source).name}, {size} bytes, {options.threads} threads, "
          f"{options.rounds} rounds; both files are the same")
    print("| | median s | fastest s | slowest s | peak memory MiB |\n|---|---|---|---|---|")
    for name in runs:
        print(f"| {name} | {median[name]:.3f} | {min(seconds[name]):.3f} | {max(seconds[name]):.3f} | {peak[name] / MIB:.1f} |")
    print(f"speed {median['llama-quantize'] / median['cerebellum']:.3f} of llama-quantize's, "
          f"peak memory {peak['cerebellum'] / peak['llama-quantize']:.3f} of llama-quantize's")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(
            {"source": pathlib.Path(options.source).name, "preset": options.preset, "threads": options.threads, "bytes": size,
             "seconds": seconds, "peak_bytes": peaks}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
