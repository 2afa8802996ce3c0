#!/usr/bin/env python3
"""The whole `cerebellum quantize` on a model that people use: how long each stage takes, and how good the file is.

    bench/real.py --source qwen2.5-coder-1.5b --device CUDA0 --test-text wiki.test.raw.gz --text wikitext2-train-sample.txt.gz \\
        --bin "$(make -s llama-bin)" --json real.json IQ2_M IQ3_XXS Q3_K_M

--source takes a GGUF, or a name that scripts/fetch-model.sh knows. A size is a number of bytes, bits per weight (3.5bpw) or
the name of a preset of llama-quantize, whose file's size is then the budget. All sizes share one journal: only the first run
measures. After it, ours and stock files of at most the size, made with the importance matrix of the first run, are judged by
llama-perplexity on the test text: of the presets that fit, the --nearest largest ones and the one that our own table of results
says does least damage; where no preset fits, uniform mixes as in bench/quality.py. Stages are those of the results file.

On a machine that scripts/gpu-build.sh built on, PYTHONPATH=build-gpu/llama.cpp/gguf-py saves fetching llama.cpp's source.

Files and judged figures are kept in --work and reused; --fresh forgets the journal and ours first, which times are to be measured with.
"""

import argparse
import json
import pathlib
import re
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, file_digest, say  # noqa: E402
from quality import (PRESETS, REPOSITORY, Comparison, Stock, add_quality_options, best_of, check_files, find_comparator,  # noqa: E402
                     preset_plans, quantize_ours, try_build, unpacked)

HEADER_BYTES = 512  # at most, of the keys that llama-quantize adds to the source's
STAGE_COLUMNS = [("wall", "wall_s"), ("device busy", "device_busy_s"), ("quantizing", "quantize_s"), ("waiting", "waiting_s")]


def fetched(source):
    """The path of a source: itself, or what fetch-model.sh gives for the name."""
    if not (REPOSITORY / "scripts" / "models" / f"{source}.txt").is_file():
        return source
    done = subprocess.run(["bash", REPOSITORY / "scripts" / "fetch-model.sh", source], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise JudgeError(f"{source} could not be fetched (the message is above)")
    return done.stdout.strip()


def most_bytes(plan, source):
    """At most so many bytes a file of this plan takes."""
    return plan.data_bytes + pathlib.Path(source).stat().st_size - plan.source_data_bytes + HEADER_BYTES


def preset_sizes(options, work, presets):
    """Bytes of presets' files, before there is an importance matrix: --dry-run asks only whether it gets one."""
    name = b"stand-in"
    stand_in = work / "stand-in.imatrix"
    stand_in.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<iifii", 1, 1, 1.0, 1, 1) + b"-")
    stock = Stock(options.bin, options.source, stand_in, work / "dry-run", 1)
    return {preset: most_bytes(stock.plan(preset), options.source) for preset in presets}


def run_ours(options, work, size, imatrix):
    """Runs the command; the file, its results and what the run took."""
    begin = time.monotonic()
    out = quantize_ours(options, work, size, imatrix)
    wall = time.monotonic() - begin
    return out, json.loads(out.with_suffix(".results.json").read_text()), wall


def promising(stock, report, budget, nearest):
    """Plans of the presets to judge: the largest that fit, and the one that our own table puts first."""
    fitting = [plan for plan in preset_plans(stock) if most_bytes(plan, stock.source) <= budget]
    fitting.sort(key=lambda plan: -plan.data_bytes)
    chosen = fitting[:nearest]
    names = {plan.name for plan in fitting}
    known = [row for row in report["files"] if row["kind"] == "preset" and row["name"] in names and row.get("kld")]
    if known:
        favourite = min(known, key=lambda row: row["kld"]["mean"])["name"]
        chosen += [plan for plan in fitting if plan.name == favourite and plan not in chosen]
    return chosen, len(fitting)


def best_stock(comparison, report, budget, options):
    """The best judged stock file (None: none fits), the judged ones, and how many fit."""
    plans, n_fitting = promising(comparison.stock, report, budget, options.nearest)
    paths = [path for path in (try_build(comparison.stock, plan) for plan in plans) if path and path.stat().st_size <= budget]
    if not paths:
        best, n_fitting = find_comparator(comparison.stock, comparison.scores, comparison.screen, budget, options)
        return best, [best] if best else [], n_fitting
    best = best_of(comparison.scores, paths)
    return best, [comparison.scores.of(path) for path in paths], n_fitting


def judged(comparison, run, options):
    best, stock, n_fitting = best_stock(comparison, run["report"], run["budget_bytes"], options)
    ours = comparison.scores.of(run["file"])
    ratio = ours["kld_mean"] / best["kld_mean"] if best else None
    report = run["report"]
    return {"size": run["size"], "budget_bytes": run["budget_bytes"], "wall_s": run["wall_s"], "journal_was_there": run["warm"],
            "stages": report.get("stages", []), "delivered": {"name": report["delivered"], "kind": report["delivered_kind"]},
            "ours": ours, "best_stock": best, "stock": stock, "stock_that_fit": n_fitting, "judged_ratio": ratio}


def stage_rows(stages, wall):
    """Lines of a table: a row per stage, what no stage accounts for, and the whole command."""
    def cell(value):
        return f"{value:.1f} s" if value is not None else ""

    def line(name, cells):
        return f"  {name:<28}" + "".join(f"{text:>14}" for text in cells)

    lines = [line("stage", [title for title, _ in STAGE_COLUMNS])]
    lines += [line(stage["name"], [cell(stage.get(key)) for _, key in STAGE_COLUMNS]) for stage in stages]
    rest = wall - sum(stage["wall_s"] for stage in stages)
    known = [[stage[key] for stage in stages if stage.get(key) is not None] for _, key in STAGE_COLUMNS[1:]]
    sums = [sum(values) if values else None for values in known]
    lines.append(line("in no stage", [cell(max(rest, 0.0))]))
    lines.append(line("whole command", [cell(wall), *map(cell, sums)]))
    return lines


def print_run(run):
    """What is known before anything is judged."""
    state = "the journal was there" if run["warm"] else "all measured"
    print(f"\nsize {run['size']}: at most {run['budget_bytes']:,} bytes; {run['wall_s']:.1f} s, {state}")
    stages = run["report"].get("stages")
    if stages:
        print("\n".join(stage_rows(stages, run["wall_s"])))
    else:
        print("  (the results file has no stages)")
    sys.stdout.flush()


def print_judged(result):
    print(f"\nsize {result['size']}: at most {result['budget_bytes']:,} bytes; {len(result['stock'])} of {result['stock_that_fit']} "
          f"stock files that fit were judged")
    for label, row in [("ours", result["ours"])] + [("stock", row) for row in result["stock"]]:
        mark = "  <- best" if row is not result["ours"] and row["file"] == result["best_stock"]["file"] else ""
        print(f"  {label:<6} {row['file']:<36} {row['size_bytes']:>14,} bytes  KLD {row['kld_mean']:.6f} ± {row['kld_error']:.6f}  "
              f"PPL {row['ppl']:.4f}  same top {row['same_top_percent']:.2f} %{mark}")
    if result["judged_ratio"]:
        note = " (a stock mix was delivered)" if result["delivered"]["kind"] != "ours" else ""
        print(f"  KLD ours / best stock {result['judged_ratio']:.4f}{note}")
    sys.stdout.flush()


def forget(work):
    for pattern in ["journal.db*", "ours-*", "imatrix.gguf"]:
        for path in work.glob(pattern):
            path.unlink()


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_quality_options(parser)
    parser.set_defaults(ctx=512, chunks=40, gpu_layers=None, stock_only=False)
    parser.add_argument("--device", help="passed on to cerebellum quantize; judged there, too, unless --gpu-layers says otherwise")
    parser.add_argument("--nearest", type=int, default=3, help="so many of the largest stock files that fit are judged (default 3)")
    parser.add_argument("--fresh", action="store_true", help="forget the journal and our files in --work first")
    parser.add_argument("sizes", nargs="+", metavar="SIZE", help="bytes, bits per weight (3.5bpw) or a preset's name")
    options = parser.parse_args()
    for size in options.sizes:
        if size not in PRESETS and not re.fullmatch(r"[0-9]+|[0-9.]+bpw", size):
            parser.error(f"{size} is neither bytes, nor bits per weight as 3.5bpw, nor a preset ({' '.join(PRESETS)})")
    if options.device:
        options.option += ["--device", options.device]
    if options.gpu_layers is None:
        options.gpu_layers = 99 if options.device and options.device != "CPU" else 0
    options.source = fetched(options.source)
    return options


def main():
    options = parse_options()
    check_files(options)
    work = pathlib.Path(options.work or f"build/real/{pathlib.Path(options.source).stem}").absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        forget(work)
    budgets = preset_sizes(options, work, [size for size in options.sizes if size in PRESETS])
    options.text = unpacked(options.text, work)
    # All runs come first: what judges keeps the processor or the device busy after it.
    runs = []
    for size in options.sizes:
        warm = (work / "journal.db").exists()
        imatrix = work / ("imatrix-again.gguf" if runs else "imatrix.gguf")
        out, report, wall = run_ours(options, work, budgets.get(size, size), imatrix)
        runs.append({"size": size, "warm": warm, "file": out, "report": report, "wall_s": wall,
                     "budget_bytes": report["budget_bytes"]})
        print_run(runs[-1])
    results = {"source": pathlib.Path(options.source).name, "source_sha256": file_digest(options.source),
               "test_text": pathlib.Path(options.test_text).name, "texts": [pathlib.Path(text).name for text in options.text],
               "ctx": options.ctx, "windows": options.chunks, "options": options.option, "device": options.device,
               "machine": runs[0]["report"].get("machine"), "sizes": []}
    with Comparison(options, work, runs[0]["budget_bytes"]) as comparison:
        for run in runs:
            results["sizes"].append(judged(comparison, run, options))
            print_judged(results["sizes"][-1])
            if options.json:
                pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError) as error:
        say(f"real.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
