#!/usr/bin/env python3
"""Compares the fast tier (local damage times propagation gain) with full measurements of the same pairs.

    bench/fast_tier.py --source models/wikicode-6.8M-f16.gguf --work build/fast-tier \\
        --markdown build/fast-tier/table.md --svg build/fast-tier/residuals.svg

Runs `cerebellum ablate --json` twice: as it is, and again with --full on a copy of the first run's journal (same text,
same windows, and no fast figure is measured twice). --full-types restricts the second run to some types, for models
where measuring all of them in full takes too long. Both journals stay in --work, so that an interrupted comparison goes
on where it stopped. Rows of earlier runs are taken from --fast-json and --full-json instead.

The first run measures anchors in full too, on half of the windows; such pairs, and those of tensors outside of the
blocks, are left out except where the line says "with anchors".
"""

import argparse
import json
import math
import os
import pathlib
import re
import sqlite3
import subprocess
import sys

WIDTH, HEIGHT, MARGIN = 720, 640, 70


class BenchError(Exception):
    """One line: what failed, where, what to do."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def ablate(options, journal, extra):
    command = [options.cerebellum, "ablate", options.source, "--json", "--tokens", str(options.tokens), "--journal", str(journal)]
    for text in options.text:
        command += ["--text", text]
    for name in ("ctx", "threads", "seed"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    for pattern in options.tensors:
        command += ["--tensors", pattern]
    command += extra
    say(" ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise BenchError(f"cerebellum ablate failed with exit code {done.returncode} (its message is above)")
    return json.loads(done.stdout)


def copy_journal(source, target):
    """A consistent copy without the full figures: the second run makes them afresh, on all windows."""
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with sqlite3.connect(source) as a, sqlite3.connect(partial) as b:
        a.backup(b)
        b.execute("DELETE FROM measurement WHERE tier = 'full'")
    a.close()
    b.close()
    partial.replace(target)


def both_runs(options):
    work = pathlib.Path(options.work or f"build/fast-tier/{pathlib.Path(options.source).stem}")
    work.mkdir(parents=True, exist_ok=True)
    fast_journal, full_journal = work / "fast.db", work / "full.db"
    fast = ablate(options, fast_journal, ["--types", options.types] if options.types else [])
    if not full_journal.exists():
        copy_journal(fast_journal, full_journal)
    types = options.full_types or options.types
    full = ablate(options, full_journal, ["--full", *(["--types", types] if types else [])])
    (work / "fast.json").write_text(json.dumps(fast, indent=1))
    (work / "full.json").write_text(json.dumps(full, indent=1))
    return fast, full


def ranks(values):
    """Ranks from 1, ties share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end < len(order) and values[order[end]] == values[order[begin]]:
            end += 1
        for i in order[begin:end]:
            result[i] = (begin + 1 + end) / 2.0
        begin = end
    return result


def correlation(a, b):
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b))
    scale = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return covariance / scale if scale > 0.0 else math.nan


def spearman(pairs):
    if len(pairs) < 3:
        return math.nan
    return correlation(ranks([p["fast"] for p in pairs]), ranks([p["full"] for p in pairs]))


def residuals(pairs):
    """log(fast / full), natural; pairs whose damage is not positive have none."""
    return sorted(math.log(p["fast"] / p["full"]) for p in pairs if p["fast"] > 0.0 and p["full"] > 0.0)


def quantile(ordered, share):
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def statistics(pairs):
    logs = residuals(pairs)
    row = {"pairs": len(pairs), "spearman": spearman(pairs)}
    if logs:
        mean = sum(logs) / len(logs)
        row |= {"mean": mean, "spread": math.sqrt(sum((x - mean) ** 2 for x in logs) / max(1, len(logs) - 1)),
                "p5": quantile(logs, 0.05), "median": quantile(logs, 0.5), "p95": quantile(logs, 0.95),
                "without": len(pairs) - len(logs)}
    return row


def number(value, digits=2):
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def markdown_table(head, groups):
    lines = [f"| {head} | pairs | Spearman | mean | spread | 5 % | median | 95 % |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for name, row in groups:
        cells = [number(row["spearman"], 3)] + [number(row.get(key)) for key in ("mean", "spread", "p5", "median", "p95")]
        lines.append(f"| {name} | {row['pairs']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def group_by(pairs, key):
    groups = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return [(name, statistics(groups[name])) for name in sorted(groups)]


def hues(names):
    return {name: f"hsl({360 * i // max(1, len(names))},65%,{45 if i % 2 else 38}%)" for i, name in enumerate(names)}


def svg_plot(pairs, title):
    """Fast against full, both axes logarithmic, one colour per type; the diagonal is agreement."""
    shown = [p for p in pairs if p["fast"] > 0.0 and p["full"] > 0.0]
    if not shown:
        return None
    values = [v for p in shown for v in (p["fast"], p["full"])]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    side = HEIGHT - 2 * MARGIN

    def x(value):
        return MARGIN + side * (math.log10(value) - low) / (high - low)

    def y(value):
        return HEIGHT - MARGIN - side * (math.log10(value) - low) / (high - low)

    types = sorted({p["type"] for p in shown})
    colours = hues(types)
    end = MARGIN + side
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
             f'<text x="{MARGIN}" y="{MARGIN // 2}" font-size="15">{title}</text>']
    for decade in range(low, high + 1):
        at_x, at_y = x(10.0**decade), y(10.0**decade)
        parts += [f'<path d="M{at_x:.1f} {MARGIN}V{end}M{MARGIN} {at_y:.1f}H{end}" stroke="#ddd"/>',
                  f'<text x="{at_x:.1f}" y="{end + 18}" text-anchor="middle">1e{decade}</text>',
                  f'<text x="{MARGIN - 6}" y="{at_y + 4:.1f}" text-anchor="end">1e{decade}</text>']
    parts += [f'<path d="M{MARGIN} {end}L{end} {MARGIN}" stroke="#888"/>',
              f'<text x="{MARGIN + side / 2}" y="{HEIGHT - 20}" text-anchor="middle">full measurement, KLD in nats per token</text>',
              f'<text transform="translate(18 {MARGIN + side / 2}) rotate(-90)" text-anchor="middle">fast tier, KLD in nats per token</text>']
    parts += [f'<circle cx="{x(p["full"]):.1f}" cy="{y(p["fast"]):.1f}" r="2.5" fill="{colours[p["type"]]}" fill-opacity="0.7">'
              f'<title>{p["tensor"]} {p["type"]}</title></circle>' for p in shown]
    for i, name in enumerate(types):
        parts += [f'<circle cx="{end + 25}" cy="{MARGIN + 10 + 18 * i}" r="4" fill="{colours[name]}"/>',
                  f'<text x="{end + 35}" y="{MARGIN + 14 + 18 * i}">{name}</text>']
    return "\n".join(parts) + "\n</svg>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="high-precision GGUF")
    parser.add_argument("--text", action="append", default=[], help="text to measure on (repeatable; default: self-sampled)")
    parser.add_argument("--tokens", type=int, default=4096, help="default 4096")
    parser.add_argument("--ctx", type=int, help="tokens per window")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--types", help="only these types in both runs, comma-separated")
    parser.add_argument("--full-types", help="only these types in the full run")
    parser.add_argument("--tensors", action="append", default=[], metavar="GLOB", help="only these tensors (repeatable)")
    parser.add_argument("--work", help="where journals and rows are kept (default build/fast-tier/<source>)")
    parser.add_argument("--fast-json", help="rows of an earlier run without --full, instead of running")
    parser.add_argument("--full-json", help="rows of an earlier run with --full")
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables of residuals here")
    parser.add_argument("--svg", metavar="FILE", help="write a scatter plot here")
    parser.add_argument("--json", metavar="FILE", help="write all figures and pairs here")
    options = parser.parse_args()
    if bool(options.fast_json) != bool(options.full_json):
        parser.error("--fast-json and --full-json go together")
    if options.fast_json:
        fast = json.loads(pathlib.Path(options.fast_json).read_text())
        full = json.loads(pathlib.Path(options.full_json).read_text())
        name = options.source or options.fast_json
    else:
        if not options.source:
            parser.error("--source is needed (or --fast-json and --full-json)")
        if not os.access(options.cerebellum, os.X_OK):
            raise BenchError(f"{options.cerebellum} is not there; run 'make build' first")
        fast, full = both_runs(options)
        name = options.source
    name = pathlib.Path(name).stem

    measured = {(row["tensor"], row["type"]): row["kld"] for row in full if row["tier"] == "full"}
    pairs = [{"tensor": row["tensor"], "type": row["type"], "tier": row["tier"], "fast": row["kld"],
              "full": measured[row["tensor"], row["type"]]} for row in fast if (row["tensor"], row["type"]) in measured]
    estimated = [pair for pair in pairs if pair["tier"] == "fast"]
    if len(estimated) < 3:
        raise BenchError(f"only {len(estimated)} pairs were both estimated and measured in full; allow more types")

    everything, without_anchors = statistics(pairs), statistics(estimated)
    by_type = group_by(estimated, lambda pair: pair["type"])
    by_role = group_by(estimated, lambda pair: re.sub(r"^blk\.\d+\.", "", pair["tensor"]))
    judged = [(type_name, row) for type_name, row in by_type if not math.isnan(row["spearman"])]
    worst_type, worst = min(judged, key=lambda entry: entry[1]["spearman"], default=("none", {"spearman": math.nan}))
    summary = (f"{name}: {everything['pairs']} pairs with anchors, Spearman {number(everything['spearman'], 4)}; "
               f"{without_anchors['pairs']} without, Spearman {number(without_anchors['spearman'], 4)}. "
               f"Within a type across tensors: lowest {number(worst['spearman'], 3)} ({worst_type}). "
               f"log(fast / full): mean {number(without_anchors.get('mean'))}, spread {number(without_anchors.get('spread'))}.")
    tables = (markdown_table("type", by_type + [("all", without_anchors)]) + "\n" + markdown_table("tensor", by_role))
    print(f"{summary}\n\n{tables}", end="")
    missing = sum(row.get("without", 0) for _, row in by_type)
    if missing:
        print(f"\n{missing} pairs have no residual: their damage is not above zero")
    if options.markdown:
        pathlib.Path(options.markdown).write_text(f"{summary}\n\n{tables}", encoding="utf-8")
    if options.svg:
        plot = svg_plot(estimated, f"{name}: {len(estimated)} pairs, anchors left out")
        if plot:
            pathlib.Path(options.svg).write_text(plot, encoding="utf-8")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"source": name, "with_anchors": everything, "all": without_anchors,
                                                          "by_type": dict(by_type), "by_role": dict(by_role), "pairs": pairs},
                                                         indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (BenchError, OSError, ValueError, sqlite3.Error) as error:
        say(f"fast_tier.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
