#!/usr/bin/env python3
"""Compares `cerebellum quantize` at given budgets with the best that llama-quantize can do in the same bytes.

    bench/quality.py --source SRC.gguf --test-text wiki.test.raw.gz --bin "$(make -s llama-bin)" Q2_K_S Q4_K_M 4000000

A budget is a number of bytes or the name of a preset, whose file's exact size is then the budget. For each budget:
ours is built (one journal for all budgets: only the first run measures); then every preset of llama-quantize whose
file is at most as large, made with the importance matrix of our run, is judged on the test text, and the best one is
the comparator. Where no preset fits, it is the best of `--pure T --token-embedding-type E` over all (T, E) that fit.
The comparator is picked by the very figures it is compared by, which is to its advantage. Where ours has found that a
stock mix does less damage and delivered that, the budget scores a ratio of 1, and such budgets are counted.

Everything made is kept in --work and reused: a second run with the same source, text and importance matrix is quick.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import Judge, JudgeError, add_judge_options, file_digest, plain_text, run_tool, say, tool  # noqa: E402

PRESETS = ("Q2_K_S Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_0 Q4_1 Q4_K_S Q4_K_M Q5_0 Q5_1 Q5_K_S Q5_K_M Q6_K Q8_0 IQ1_S IQ1_M "
           "IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_XS IQ4_NL").split()
# What --pure makes of these presets is one type each, named beside it.
PURE = {"IQ1_S": "iq1_s", "IQ1_M": "iq1_m", "IQ2_XXS": "iq2_xxs", "IQ2_XS": "iq2_xs", "IQ2_M": "iq2_s",
        "IQ3_XXS": "iq3_xxs", "IQ3_S": "iq3_s", "IQ4_XS": "iq4_xs", "IQ4_NL": "iq4_nl", "Q2_K": "q2_K",
        "Q3_K_S": "q3_K", "Q4_0": "q4_0", "Q4_1": "q4_1", "Q4_K_S": "q4_K", "Q5_0": "q5_0", "Q5_1": "q5_1",
        "Q5_K_S": "q5_K", "Q6_K": "q6_K", "Q8_0": "q8_0"}
ALIGNMENT = 32
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TENSOR_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[([0-9, ]+)\], type = +(\w+),.*?(?:\((\w+)\))?$", re.MULTILINE)


def block_sizes():
    """(weights, bytes) of a block by type name in lower case, from llama.cpp's own gguf-py: on PYTHONPATH, installed, or fetched."""
    found = importlib.util.find_spec("gguf")
    if found:
        package = found.submodule_search_locations[0]
    else:
        tree = run_tool(["bash", REPOSITORY / "scripts" / "llama-cpp.sh", "source"]).strip()
        package = pathlib.Path(tree) / "gguf-py" / "gguf"
    # The module alone: the package around it wants numpy.
    spec = importlib.util.spec_from_file_location("gguf_constants", pathlib.Path(package) / "constants.py")
    constants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)
    return {kind.name.lower(): sizes for kind, sizes in constants.GGML_QUANT_SIZES.items()}


@dataclasses.dataclass
class Plan:
    """What a llama-quantize command line would make, by its own --dry-run."""
    name: str
    arguments: list   # options before the input file
    preset: str
    types: tuple      # type per tensor, in the file's order
    data_bytes: int   # tensor data with padding
    source_data_bytes: int


class Stock:
    """llama-quantize on one source with one importance matrix; files are made once and kept in `folder`."""

    def __init__(self, bin_dir, source, imatrix, folder, threads):
        self.quantize = tool(bin_dir, "llama-quantize")
        self.source = pathlib.Path(source).absolute()
        self.folder = folder
        self.threads = threads
        folder.mkdir(parents=True, exist_ok=True)
        # The matrix's path is written into the file: a short relative one keeps the size independent of our folders.
        (folder / "imatrix.gguf").write_bytes(pathlib.Path(imatrix).read_bytes())
        self.header_bytes = None
        self.plans = {}
        self.blocks = block_sizes()

    def plan(self, preset, extra=(), name=None):
        name = name or preset
        if name in self.plans:
            return self.plans[name]
        arguments = [*extra, "--imatrix", "imatrix.gguf"]
        output = run_tool([self.quantize, "--dry-run", *arguments, self.source, preset], cwd=self.folder)
        types, data_bytes, source_data_bytes = [], 0, 0
        for tensor, shape, before, after in TENSOR_LINE.findall(output):
            dims = [int(part) for part in shape.split(",")]
            if dims[0] % self.blocks[(after or before).lower()][0]:  # an embedding's type is not replaced, and llama-quantize aborts
                raise JudgeError(f"{name} wants {after or before} for {tensor}, whose rows have {dims[0]} weights")
            data_bytes += self._padded_bytes(dims, after or before)
            source_data_bytes += self._padded_bytes(dims, before)
            types.append(after or before)
        if not types:
            raise JudgeError(f"llama-quantize --dry-run listed no tensors for {name}")
        self.plans[name] = Plan(name, arguments, preset, tuple(types), data_bytes, source_data_bytes)
        return self.plans[name]

    def _padded_bytes(self, dims, type_name):
        block_weights, block_bytes = self.blocks[type_name.lower()]
        n_bytes = math.prod(dims) // block_weights * block_bytes
        return -(-n_bytes // ALIGNMENT) * ALIGNMENT

    def build(self, plan):
        """The file of a plan."""
        path = self.folder / f"{plan.name}.gguf"
        if not path.is_file():
            say(f"llama-quantize {plan.name}")
            partial = path.with_suffix(".partial")
            run_tool([self.quantize, *plan.arguments, self.source, partial.absolute(), plan.preset, self.threads],
                     cwd=self.folder)
            partial.replace(path)
        header_bytes = path.stat().st_size - plan.data_bytes
        if self.header_bytes is None:
            self.header_bytes = header_bytes
        elif self.header_bytes != header_bytes:
            say(f"note: {path.name} has {header_bytes - self.header_bytes:+} bytes against what --dry-run foretold")
        return path

    def size_bytes(self, plan):
        """Exact size without building: header as in any other file of this source, plus the data."""
        if self.header_bytes is None:
            self.build(self.plan("Q8_0"))
        return self.header_bytes + plan.data_bytes

    def pure_plans(self, budget, all_pairs):
        """Distinct (T, E) that fit; unless all_pairs, for each T only the three largest E."""
        plans, seen = [], set()
        for preset, type_name in PURE.items():
            fitting = []
            for embedding in PURE.values():
                name = f"pure-{type_name}-embedding-{embedding}"
                try:
                    plan = self.plan(preset, ["--pure", "--token-embedding-type", embedding], name)
                except JudgeError:
                    continue
                if self.size_bytes(plan) <= budget and plan.types not in seen:
                    seen.add(plan.types)
                    fitting.append(plan)
            fitting.sort(key=lambda plan: -plan.data_bytes)
            plans += fitting if all_pairs else fitting[:3]
        return plans


class Scores:
    """Judged figures, kept in a JSON file under what they depend on."""

    def __init__(self, path, make_judge):
        self.path = path
        self.make_judge = make_judge
        self.judge = None
        self.rows = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, path):
        key = file_digest(path)
        if key not in self.rows:
            if self.judge is None:
                self.judge = self.make_judge().__enter__()
            say(f"judging {path.name}")
            self.rows[key] = self.judge.judge(path)
            self.path.write_text(json.dumps(self.rows, indent=1))
        return {**self.rows[key], "file": path.name}

    def close(self):
        if self.judge is not None:
            self.judge.__exit__()


def quantize_ours(options, work, size_bytes, imatrix_out):
    out = work / f"ours-{size_bytes}.gguf"
    command = [options.cerebellum, "quantize", options.source, "--size", str(size_bytes), "-o", str(out), "--journal",
               str(work / "journal.db"), "--imatrix-out", str(imatrix_out), "--force"]
    for text in options.text:
        command += ["--text", text]
    if options.imatrix:
        command += ["--imatrix", options.imatrix]
    if options.threads:
        command += ["--threads", str(options.threads)]
    command += options.option
    say(" ".join(command))
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise JudgeError(f"cerebellum quantize failed with exit code {done.returncode} (its message is above)")
    return out


def best_of(scores, paths):
    return min((scores.of(path) for path in paths), key=lambda row: row["kld_mean"])


def preset_plans(stock):
    """Plans of the presets that this source can have."""
    plans = []
    for preset in PRESETS:
        try:
            plans.append(stock.plan(preset))
        except JudgeError as error:
            say(f"left out: {preset}: {error}")
    return plans


def find_comparator(stock, scores, screen, budget, options):
    """The best stock file of at most `budget` bytes (None: none fits), and how many were candidates."""
    fitting = [plan for plan in preset_plans(stock) if stock.size_bytes(plan) <= budget]
    paths = [path for path in (try_build(stock, plan) for plan in fitting) if path and path.stat().st_size <= budget]
    if paths and not options.pure:
        return best_of(scores, paths), len(paths)
    plans = stock.pure_plans(budget, options.all_pairs)
    say(f"{len(plans)} combinations of --pure and --token-embedding-type fit {budget:,} bytes")
    screened = []
    for plan in plans:
        path = try_build(stock, plan)
        if path and path.stat().st_size <= budget:
            screened.append((screen.of(path)["kld_mean"], plan))
            path.unlink()  # dozens of files; the finalists are made again
    screened.sort(key=lambda entry: entry[0])
    finalists = [stock.build(plan) for _, plan in screened[:4]]
    return (best_of(scores, finalists), len(screened)) if finalists else (None, 0)


def try_build(stock, plan):
    try:
        return stock.build(plan)
    except JudgeError as error:
        say(f"left out: {plan.name}: {error}")  # for example an IQ type without statistics for the embedding
        return None


class Comparison:
    """Ours against stock files of one source, on one test text. Use it as a context manager."""

    def __init__(self, options, work, first_size):
        """`first_size`: bytes of the first file of ours, whose importance matrix the stock files are made with."""
        self.options, self.work = options, work
        digest = file_digest(options.source)[:12]
        work.mkdir(parents=True, exist_ok=True)
        options.text = unpacked(options.text, work)
        imatrix = pathlib.Path(options.imatrix) if options.imatrix else work / "imatrix.gguf"
        if not options.imatrix and not options.stock_only and not imatrix.is_file():
            quantize_ours(options, work, first_size, imatrix)
        self.stock = Stock(options.bin, options.source, imatrix, work / f"stock-{digest}-{file_digest(imatrix)[:12]}",
                           options.threads or os.cpu_count() or 1)
        text_key = f"{digest}-{file_digest(options.test_text)[:12]}-{options.ctx}-{options.flash_attn}-{options.gpu_layers}"

        def make_scores(chunks):
            base = None if chunks != options.chunks else options.base
            return Scores(work / f"scores-{text_key}-{chunks}.json",
                          lambda: Judge(options.source, options.test_text, options.bin, options.ctx, chunks,
                                        options.threads, base, options.flash_attn, options.gpu_layers))

        self.scores, self.screen = make_scores(options.chunks), make_scores(options.screen_chunks)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.scores.close()
        self.screen.close()

    def size_of(self, budget):
        """Bytes of a budget: a number, or the size of a preset's file."""
        return int(budget) if budget.isdigit() else self.stock.build(self.stock.plan(budget)).stat().st_size

    def compare(self, budget):
        size, ours, delivered = self.size_of(budget), None, None
        if not self.options.stock_only:
            out = quantize_ours(self.options, self.work, size, self.work / "imatrix-again.gguf")
            ours = self.scores.of(out)
            report = json.loads(out.with_suffix(".results.json").read_text())
            delivered = {"name": report["delivered"], "stock": report["delivered_kind"] != "ours"}
        comparator, candidates = find_comparator(self.stock, self.scores, self.screen, size, self.options)
        judged = ours["kld_mean"] / comparator["kld_mean"] if ours and comparator else None
        ratio = 1.0 if judged and delivered["stock"] else judged
        return {"budget": budget, "budget_bytes": size, "ours": ours, "delivered": delivered, "comparator": comparator,
                "candidates": candidates, "judged_ratio": judged, "ratio": ratio}


def print_result(result):
    comparator = result["comparator"]
    print(f"\nbudget {result['budget']} = {result['budget_bytes']:,} bytes")
    rows = [("ours", result["ours"])] if result["ours"] else []
    rows += [("best stock", comparator)] if comparator else []
    for label, row in rows:
        print(f"  {label:<11} {row['file']:<42} {row['size_bytes']:>13,} bytes  KLD {row['kld_mean']:.6f} ± "
              f"{row['kld_error']:.6f}  PPL {row['ppl']:.4f}  same top {row['same_top_percent']:.2f} %")
    if result["ours"]:
        used = 100.0 * result["ours"]["size_bytes"] / result["budget_bytes"]
        over = "  OVER BUDGET" if result["ours"]["size_bytes"] > result["budget_bytes"] else ""
        print(f"  budget used {used:.3f} %{over}")
    if result["ours"] and result["delivered"]["stock"]:
        print(f"  delivered was the stock mix {result['delivered']['name']}: this budget scores a ratio of 1")
    if result["ours"] and comparator:
        print(f"  KLD ours / best stock {result['judged_ratio']:.4f}: {100.0 * (1.0 - result['judged_ratio']):.1f} % lower "
              f"(best of {result['candidates']})")
    if not comparator:
        print("  llama-quantize has nothing that fits")


def print_summary(results):
    ratios = [result["ratio"] for result in results if result["ratio"] is not None]
    if not ratios:
        return
    stock = sum(result["delivered"]["stock"] for result in results if result["delivered"])
    print(f"\n{len(ratios)} budgets: median {100.0 * (1.0 - statistics.median(ratios)):.1f} % lower, least "
          f"{100.0 * (1.0 - max(ratios)):.1f} % lower; a stock mix had to be delivered at {stock}")


def add_quality_options(parser):
    parser.add_argument("--source", required=True, help="high-precision GGUF")
    add_judge_options(parser)
    parser.add_argument("--test-text", required=True, help="text to judge on; .gz and .bz2 are unpacked")
    parser.add_argument("--text", action="append", default=[], help="what ours may learn from; .gz and .bz2 are unpacked (repeatable)")
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("--imatrix", help="use this importance matrix, in ours too, instead of the one ours makes")
    parser.add_argument("--option", action="append", default=[], help="passed on to cerebellum quantize, as --option=--seed=1")
    parser.add_argument("--work", help="where files are kept (default build/quality/<source>)")
    parser.add_argument("--pure", action="store_true", help="compare with --pure combinations though presets fit")
    parser.add_argument("--all-pairs", action="store_true", help="judge every (T, E) that fits, not three E for each T")
    parser.add_argument("--screen-chunks", type=int, default=4, help="windows to pick the four best combinations on")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON here")


def unpacked(texts, folder):
    """The texts' paths, those of packed ones unpacked into `folder`: cerebellum reads plain text."""
    paths = []
    for text in texts:
        with plain_text(text, folder) as path:
            paths.append(str(path))
    return paths


def check_files(options):
    for path in [options.source, options.test_text, *options.text, *([options.imatrix] if options.imatrix else [])]:
        if not pathlib.Path(path).is_file():
            raise JudgeError(f"{path} is not there")
    if not options.stock_only and not os.access(options.cerebellum, os.X_OK):
        raise JudgeError(f"{options.cerebellum} is not there; run 'make build' first")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_quality_options(parser)
    parser.add_argument("--stock-only", action="store_true", help="only find the comparators (needs --imatrix)")
    parser.add_argument("budgets", nargs="+", metavar="BUDGET", help="bytes, or a preset's name")
    options = parser.parse_args()
    for budget in options.budgets:
        if not budget.isdigit() and budget not in PRESETS:
            parser.error(f"{budget} is neither a number of bytes nor a preset ({' '.join(PRESETS)})")
    if options.stock_only and not options.imatrix:
        parser.error("--stock-only needs --imatrix")
    check_files(options)
    # Half the source is a budget that always fits.
    numbers = [int(budget) for budget in options.budgets if budget.isdigit()]
    first = numbers[0] if numbers else pathlib.Path(options.source).stat().st_size // 2
    work = pathlib.Path(options.work or f"build/quality/{pathlib.Path(options.source).stem}").absolute()
    results = []
    with Comparison(options, work, first) as comparison:
        for budget in options.budgets:
            results.append(comparison.compare(budget))
            print_result(results[-1])
            sys.stdout.flush()
            if options.json:
                pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    print_summary(results)


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError) as error:
        say(f"quality.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
