#!/usr/bin/env python3
"""Measures a model under a memory limit and without one: the same figures, at what cost?

    bench/memory.py [--source SRC.gguf] [--limit BYTES]

Without --source a model of a little more than 3 GB is generated (bench/generate_model.py). The limit is a third of the
source unless given. Peak memory is what the system counts for the process (maximum resident set), pages of the mapped
model included.
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
from speed import default_text, minutes, timed  # noqa: E402

# The bar: within a tenth of the limit, and so much for what does not depend on it.
TOLERANCE, ALLOWANCE_BYTES = 0.1, 300 * 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=pathlib.Path, help="high-precision GGUF (default: generated)")
    parser.add_argument("--limit", type=int, help="bytes (default: a third of the source)")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--ctx", type=int, default=128)
    parser.add_argument("--types", default="q4_0", help="default q4_0: one type, so one anchor for every tensor")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cerebellum-memory-") as scratch:
        folder = pathlib.Path(scratch)
        source = options.source
        if source is None:
            source = folder / "generated.gguf"
            subprocess.run([sys.executable, str(pathlib.Path(__file__).parent / "generate_model.py"), "--layers", "8", "--width",
                            "4096", "--ff", "11008", "--vocab", "16000", str(source)], check=True)
        source_bytes = source.stat().st_size
        limit = options.limit or source_bytes // 3
        text = default_text(folder)
        runs = {}
        for name, extra in (("ample", []), ("limited", ["--memory", str(limit), "--scratch", str(folder), "--verbose"])):
            command = [options.cerebellum, "ablate", source, "--json", "--text", text, "--tokens", options.tokens, "--ctx",
                       options.ctx, "--types", options.types, "--threads", options.threads, "--journal", folder / f"{name}.db",
                       *extra]
            say(" ".join(map(str, command)))
            wall_s, peak_bytes, out, err = timed(command, folder, name)
            plan = [line for line in err.read_text(errors="replace").splitlines() if line.startswith("memory on ")]
            runs[name] = {"wall_s": wall_s, "peak_bytes": peak_bytes, "rows": json.loads(out.read_text()), "plan": plan[-1:]}
            say(f"{name}: {wall_s:.1f} s, peak {peak_bytes / 2**20:.0f} MiB")
    ample, limited = runs["ample"], runs["limited"]
    bar = limit * (1 + TOLERANCE) + ALLOWANCE_BYTES
    result = {"source_bytes": source_bytes, "limit_bytes": limit, "pairs": len(ample["rows"]),
              "same_figures": ample["rows"] == limited["rows"], "slower": limited["wall_s"] / ample["wall_s"],
              "peak_bytes": limited["peak_bytes"], "bar_bytes": bar, "ample_peak_bytes": ample["peak_bytes"],
              "ample_wall_s": ample["wall_s"], "limited_wall_s": limited["wall_s"], "plan": limited["plan"]}
    print(f"\nsource {source_bytes / 1e9:.2f} GB, --memory {limit / 1e9:.2f} GB, {result['pairs']} pairs of tensor and type, "
          f"{options.tokens} tokens")
    for line in limited["plan"]:
        print(f"  {line}")
    print(f"  without a limit {minutes(ample['wall_s'])}, peak {ample['peak_bytes'] / 2**20:.0f} MiB")
    print(f"  with the limit  {minutes(limited['wall_s'])}, peak {limited['peak_bytes'] / 2**20:.0f} MiB "
          f"(limit + 10 % + 300 MiB = {bar / 2**20:.0f} MiB)")
    print(f"  {result['slower']:.2f} times as long; figures {'are the same' if result['same_figures'] else 'DIFFER'}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["same_figures"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (JudgeError, OSError, subprocess.CalledProcessError) as error:
        say(f"memory.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
