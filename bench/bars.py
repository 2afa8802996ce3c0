#!/usr/bin/env python3
"""Ours against the best stock file at budgets over the whole range of sizes, for one model, with several texts to learn from.

    bench/bars.py --source models/wikicode-6.8M-f16.gguf --test-text wiki.test.raw.gz --learn default \\
        --learn wikitext2-train-sample.txt --bin "$(make -s llama-bin)" --work bars/wikicode

For each --learn text ("default": the text that the model writes itself) the model is measured once; budgets are spread evenly,
on a logarithmic scale, from the smallest file that is possible to --upto bits per weight; at each, ours is built and
judged against the best preset of llama-quantize of at most its size (or, where none fits, the best uniform mix), as
bench/quality.py does it. Results are written to results.json and results.md in --work after every budget. What is there already
is not done again: run the same command until it is through. Other options are those of bench/quality.py.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, file_digest, say  # noqa: E402
from quality import Comparison, add_quality_options, check_files, print_result, unpacked  # noqa: E402


def run_json(options, arguments):
    command = [options.cerebellum, *map(str, arguments), "--json"]
    say(" ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise JudgeError(f"cerebellum {arguments[0]} failed with exit code {done.returncode} (its message is above)")
    return json.loads(done.stdout)


def measure(options, work):
    """Measures what the journal lacks; the smallest file's bytes and the number of weights."""
    journal = work / "journal.db"
    arguments = ["ablate", options.source, "--journal", journal]
    for text in options.text:
        arguments += ["--text", text]
    if options.imatrix:
        arguments += ["--imatrix", options.imatrix]
    if options.threads:
        arguments += ["--threads", options.threads]
    run_json(options, arguments + options.measuring)
    frontier = run_json(options, ["frontier", options.source, "--journal", journal, "-o", work / "frontier.json", "--force"])
    weights = run_json(options, ["inspect", options.source])["weights"]
    return frontier["smallest"]["bytes"], weights


def spread(least, most, n):
    return [round(least * (most / least) ** (i / (n - 1))) if i else least for i in range(n)]


def to_markdown(results, weights):
    lines = [f"KLD in nats per token on {results['test_text']}, judged by llama-perplexity; {results['model']}.", "",
             "| learnt from | budget, bytes | bits per weight | ours | best stock file | | lower by | delivered |",
             "|---|--:|--:|--:|--:|---|--:|---|"]
    for row in results["rows"]:
        ours, stock = row["ours"], row["comparator"]
        other = f"{stock['kld_mean']:.5f} ± {stock['kld_error']:.5f} | {stock['file'].removesuffix('.gguf')} | " \
                f"{100.0 * (1.0 - row['ratio']):.1f} %" if stock else "none fits | | –"
        lines.append(f"| {row['learn']} | {row['budget_bytes']:,} | {8.0 * row['budget_bytes'] / weights:.2f} | "
                     f"{ours['kld_mean']:.5f} ± {ours['kld_error']:.5f} | {other} | {row['delivered']['name']} |")
    lines.append("")
    for learn in dict.fromkeys(row["learn"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["learn"] == learn]
        ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
        if ratios:
            stock = sum(row["delivered"]["stock"] for row in rows)
            lines.append(f"{learn}: {len(ratios)} budgets, median {100.0 * (1.0 - statistics.median(ratios)):.1f} % lower, least "
                         f"{100.0 * (1.0 - max(ratios)):.1f} % lower; a stock mix had to be delivered at {stock}.")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_quality_options(parser)
    parser.add_argument("--learn", action="append", default=[], help="text to learn from, or 'default' (repeatable)")
    parser.add_argument("--budgets", type=int, default=8, help="how many for each text (default 8)")
    parser.add_argument("--upto", type=float, default=6.5, help="bits per weight of the largest (default 6.5)")
    parser.add_argument("--measuring", action="append", default=[],
                        help="passed on to whatever measures, as --measuring=--tokens=2048; --option only to quantize")
    parser.set_defaults(stock_only=False)
    options = parser.parse_args()
    if options.text or options.json:
        parser.error("texts go with --learn, and results are in --work")
    if options.budgets < 2:
        parser.error("two budgets are the least")
    learn = options.learn or ["default"]
    options.text = [text for text in learn if text != "default"]
    check_files(options)
    root = pathlib.Path(options.work or f"build/bars/{pathlib.Path(options.source).stem}").absolute()
    root.mkdir(parents=True, exist_ok=True)
    # What figures hang on; another setting starts anew.
    key = {"source": file_digest(options.source), "test_text_digest": file_digest(options.test_text), "ctx": options.ctx,
           "chunks": options.chunks, "flash_attention": options.flash_attn, "gpu_layers": options.gpu_layers,
           "imatrix": options.imatrix, "pure": options.pure, "all_pairs": options.all_pairs, "options": [*options.measuring, *options.option]}
    path = root / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if results.get("key") != key:
        results = {"key": key, "model": pathlib.Path(options.source).name, "test_text": pathlib.Path(options.test_text).name,
                   "rows": []}
    for text in learn:
        name = "default" if text == "default" else pathlib.Path(text).name
        work = root / (name if name == "default" else f"{name}-{file_digest(text)[:12]}")
        work.mkdir(parents=True, exist_ok=True)
        of_text = types.SimpleNamespace(**{**vars(options), "text": [] if text == "default" else unpacked([text], work),
                                           "option": [*options.measuring, *options.option]})
        least, weights = measure(of_text, work)
        most = int(options.upto * weights / 8.0)
        if most <= least:
            raise JudgeError(f"the smallest file has {least} bytes, more than {options.upto} bits per weight; raise --upto")
        budgets = spread(least, most, options.budgets)
        done = {(row["learn"], row["budget_bytes"]) for row in results["rows"]}
        if all((name, budget) in done for budget in budgets):
            continue
        with Comparison(of_text, work, most) as comparison:
            for budget in budgets:
                if (name, budget) in done:
                    continue
                row = {"learn": name, **comparison.compare(str(budget))}
                print_result(row)
                sys.stdout.flush()
                results["rows"].append(row)
                path.write_text(json.dumps(results, indent=1) + "\n")
                (root / "results.md").write_text(to_markdown(results, weights))
    print(f"\n{(root / 'results.md').read_text()}")


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError) as error:
        say(f"bars.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
