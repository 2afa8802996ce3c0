#!/usr/bin/env python3
"""Compares ggml's rounding with error feedback at equal bytes, both with our own allocation.

    bench/rounding.py --source SRC.gguf --text calibration.txt --test-text wiki.test.raw.gz \\
        --bin "$(make -s llama-bin)" 2.6bpw 3.5bpw 4.5bpw

One `cerebellum ablate --rounding auto` measures both; for each budget `allocate --rounding ggml` and `allocate --rounding
auto` share its journal, `build` makes both files, and llama-perplexity judges them on the test text. --uniform TYPE
adds files with every quantizable matrix in one type. Everything is kept in --work and reused.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import Judge, JudgeError, add_judge_options, file_digest, plain_text, run_tool, say  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


class Bench:
    def __init__(self, options, work):
        self.options = options
        self.work = work
        self.journal = work / "journal.db"
        self.scores_path = work / f"scores-{file_digest(options.test_text)[:12]}-{options.ctx}-{options.chunks}.json"
        self.scores = json.loads(self.scores_path.read_text()) if self.scores_path.is_file() else {}
        self.judge = None
        self.recipe = None  # the last one that may use feedback

    def cerebellum(self, *arguments):
        threads = ["--threads", self.options.threads] if self.options.threads and arguments[0] != "allocate" else []
        return run_tool([self.options.cerebellum, arguments[0], self.options.source, *arguments[1:], *threads])

    def measure(self):
        """Seconds that measuring took, with ggml's rounding alone and what feedback adds; None where it was resumed."""
        seconds = {}
        with plain_text(self.options.text, self.work) if self.options.text else _nothing() as text:
            for rounding in ("ggml", "auto"):
                mark = self.work / f"measured-{rounding}.json"
                if not mark.is_file():
                    started = time.monotonic()
                    self.cerebellum("ablate", "--rounding", rounding, "--journal", self.journal, "--tokens",
                                    self.options.tokens, *(["--text", text] if text else []), "-q", "--json",
                                    *self.options.option)
                    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
                    mark.write_text(json.dumps({"seconds": time.monotonic() - started, "peak_bytes": peak}))
                seconds[rounding] = json.loads(mark.read_text())
        return seconds

    def build(self, recipe, name):
        out = self.work / f"{name}.gguf"
        digest = self.work / f"{name}.built"
        key = file_digest(recipe)
        seconds = None
        if not (out.is_file() and digest.is_file() and digest.read_text() == key):
            started = time.monotonic()
            self.cerebellum("build", "--recipe", recipe, "--imatrix", self.work / "any.imatrix.gguf", "--moments",
                            f"{self.journal}.moments", "-o", out, "--force", "-q")
            seconds = time.monotonic() - started
            digest.write_text(key)
        return out, seconds

    def allocated(self, budget, rounding):
        recipe = self.work / f"{budget}-{rounding}.json"
        self.cerebellum("allocate", "--size", budget, "--rounding", rounding, "--journal", self.journal, "-o", recipe,
                        "--force")
        recipe.with_suffix(".imatrix.gguf").replace(self.work / "any.imatrix.gguf")
        if rounding == "auto":
            self.recipe = json.loads(recipe.read_text())
        return self.score(*self.build(recipe, f"{budget}-{rounding}"), recipe)

    def uniform(self, kind, rounding):
        """Every tensor that was measured in this type."""
        if "moments_sha256" not in self.recipe["provenance"]:
            raise JudgeError("the last budget's recipe does not use feedback; end with another budget")
        recipe = {**self.recipe, "file_bytes": 0, "predicted_kld": None}
        recipe["types"] = {name: kind + ("+feedback" if rounding == "auto" and name != "token_embd.weight" else "")
                           for name in recipe["types"]}
        path = self.work / f"uniform-{kind}-{rounding}.json"
        path.write_text(json.dumps(recipe, indent=2) + "\n")
        return self.score(*self.build(path, path.stem), path)

    def score(self, path, build_seconds, recipe):
        key = file_digest(path)
        if key not in self.scores:
            if self.judge is None:
                options = self.options
                self.judge = Judge(options.source, options.test_text, options.bin, options.ctx, options.chunks,
                                   options.threads, options.base, options.flash_attn, options.gpu_layers).__enter__()
            self.scores[key] = self.judge.judge(path)
            self.scores_path.write_text(json.dumps(self.scores, indent=1) + "\n")
        predicted = json.loads(recipe.read_text()).get("predicted_kld")
        types = json.loads(recipe.read_text())["types"].values()
        return {**self.scores[key], "build_s": build_seconds, "predicted_kld": predicted,
                "feedback": sum("+" in kind for kind in types), "tensors": len(types)}

    def close(self):
        if self.judge is not None:
            self.judge.__exit__(None, None, None)


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        pass


def print_row(name, plain, improved):
    change = improved["kld_mean"] / plain["kld_mean"] - 1.0
    print(f"{name:>12} {plain['size_bytes']:>12,} {improved['size_bytes']:>12,} "
          f"{plain['kld_mean']:>10.6f} ± {plain['kld_error']:.6f} {improved['kld_mean']:>10.6f} ± "
          f"{improved['kld_error']:.6f} {100.0 * change:>+8.1f} %  {improved['feedback']}/{improved['tensors']}",
          flush=True)
    return {"budget": name, "plain": plain, "improved": improved, "change": change}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="the GGUF to quantize")
    parser.add_argument("--text", help="calibration text; .gz and .bz2 are unpacked (default: the model writes its own)")
    parser.add_argument("--test-text", required=True, help="text to judge on, disjoint from --text")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens that every change is measured on (default 4096)")
    add_judge_options(parser)
    parser.add_argument("--cerebellum", default=str(REPOSITORY / "build" / "cerebellum"))
    parser.add_argument("--option", action="append", default=[], help="more for 'ablate', as --option=--ctx=256")
    parser.add_argument("--uniform", action="append", default=[], metavar="TYPE", help="also every matrix in this type; an embedding keeps ggml's rounding")
    parser.add_argument("--work", help="where files are kept (default build/rounding/<source>)")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON here")
    parser.add_argument("budgets", nargs="+", metavar="SIZE", help="as for --size: 3.5bpw, 4MB")
    options = parser.parse_args()
    if not os.access(options.cerebellum, os.X_OK):
        raise JudgeError(f"{options.cerebellum} is not there; run 'make build' first")
    work = pathlib.Path(options.work or f"build/rounding/{pathlib.Path(options.source).stem}").absolute()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, work)
    rows = []
    try:
        measuring = bench.measure()
        say(f"measuring: {measuring}")
        print(f"{'size':>12} {'bytes':>12} {'bytes':>12} {'KLD, ggml':>21} {'KLD, auto':>21} {'change':>10}  feedback")
        for budget in options.budgets:
            rows.append(print_row(budget, bench.allocated(budget, "ggml"), bench.allocated(budget, "auto")))
        for kind in options.uniform:
            rows.append(print_row(kind, bench.uniform(kind, "ggml"), bench.uniform(kind, "auto")))
    finally:
        bench.close()
    if budgets := rows[:len(options.budgets)]:
        print(f"median change over budgets: {100.0 * statistics.median(row['change'] for row in budgets):+.1f} %")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"measuring": measuring, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError, subprocess.SubprocessError) as error:
        say(f"rounding.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
