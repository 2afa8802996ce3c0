#!/usr/bin/env python3
"""Times measuring every admissible type of every tensor: ours, the naive loop, and what the arithmetic alone would take.

    bench/speed.py --source SRC-f16.gguf --bin "$(make -s llama-bin)"
    bench/speed.py --source SRC-f16.gguf --bin "$(make -s llama-bin)" --full --types q4_0 --ours-tokens 2560

Ours:  one `cerebellum ablate --json` with a fresh journal: wall time of the whole command (loading, tokenizing,
       importance matrix, check of the replay, measuring) and its peak memory.
Naive: for each tensor and type, llama-quantize writes the whole file with that one tensor in that type, and
       llama-perplexity --kl-divergence runs it. Timed on --pairs of the pairs that ours measured, with types in
       proportion and spread over layers and roles, and scaled to their number. The logits of the source and
       llama-quantize's importance matrix are made once and not counted.
Ideal: the FLOPs that ours replayed at the rate at which llama-bench processes prompts of one window, plus ours'
       quantizing time. llama-bench's rate in FLOPs: tokens/s times the FLOPs per token of the blocks' matrix products,
       attention included (both count it); the head is left out because llama-bench needs the last token's logits
       only, and for the same reason the last block's feed-forward part.

All use the same text, number of tokens, window length and threads, and no flash attention. llama-perplexity scores the second
half of each window and ours all but its first eighth, so ours needs fewer tokens for as many scored positions and as small
errors: --ours-tokens. On a device (--device) all programs keep all layers there. --tensors measures a sample.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from judge import JudgeError, MissingFigure, parse_statistics, plain_text, run_tool, say, tool  # noqa: E402

SUMMARY = re.compile(r"([0-9.]+) TFLOP replayed in (.+?), quantizing took (.+?)$", re.MULTILINE)
UNITS_S = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001}


def seconds_of(text):
    """Seconds of "1 h 2 min", "3 min 17 s", "0.52 s"."""
    parts = re.findall(r"([0-9.]+) (h|min|ms|s)\b", text)
    if not parts:
        raise JudgeError(f"cannot read the duration '{text}' in what cerebellum printed")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def timed(command, folder, name):
    """Runs a command; returns wall seconds, peak resident bytes, and the paths of its stdout and stderr."""
    out, err = folder / f"{name}.stdout", folder / f"{name}.stderr"
    with open(out, "wb") as out_file, open(err, "wb") as err_file:
        start = time.monotonic()
        process = subprocess.Popen([str(part) for part in command], stdout=out_file, stderr=err_file)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = err.read_text(errors="replace").strip().splitlines()
        raise JudgeError(f"{pathlib.Path(command[0]).name} failed with exit code {process.returncode}: {' | '.join(lines[-2:])}")
    return wall_s, usage.ru_maxrss * 1024, out, err


def layer_of(name):
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def role_of(name):
    return re.sub(r"^blk\.\d+\.", "", name)


def choose_pairs(rows, count):
    """`count` rows: types in proportion to how many rows have them (some types take llama-quantize much longer than
    others), spread over layers, and roles that came up least so far. Deterministic."""
    count = min(count, len(rows))
    by_type = sorted(rows, key=lambda row: row["type"])
    layers = sorted({layer_of(row["tensor"]) for row in rows})
    chosen = []
    for i in range(count):
        type_name = by_type[(2 * i + 1) * len(rows) // (2 * count)]["type"]
        # Neighbours in type get distant layers.
        place = (2 * i) % count if count % 2 else (2 * i) % count + (2 * i >= count)
        layer = layers[(2 * place + 1) * len(layers) // (2 * count)]
        seen_roles = [role_of(row["tensor"]) for row in chosen]
        candidates = [row for row in rows if row["type"] == type_name and row not in chosen]
        roles = sorted({role_of(row["tensor"]) for row in candidates})
        wanted = roles[i * len(roles) // count]  # among equally new ones, not always the first in the alphabet
        chosen.append(min(candidates, key=lambda row: (abs(layer_of(row["tensor"]) - layer), seen_roles.count(role_of(row["tensor"])),
                                                       role_of(row["tensor"]) != wanted, row["tensor"])))
    return chosen


class Naive:
    """The loop that everybody writes, for one pair at a time."""

    def __init__(self, options, info, text, folder):
        self.options = options
        self.info = info
        self.folder = folder
        self.source = pathlib.Path(options.source).absolute()
        self.quantize = tool(options.bin, "llama-quantize")
        self.perplexity = tool(options.bin, "llama-perplexity")
        kinds = [tensor["type"] for tensor in info["tensors"] if tensor["type"] != "f32"]
        self.source_type = max(set(kinds), key=kinds.count) if kinds else "f32"
        self.common = ["-c", options.ctx, "--chunks", options.tokens // options.ctx, *layers_on(options), "-fa", "off", "--no-repack",
                       "-t", options.threads]
        say("naive: importance matrix and the source's logits (made once, not counted)")
        self.imatrix = []
        if not options.no_naive_imatrix:
            self.imatrix = ["--imatrix", folder / "imatrix.gguf"]
            run_tool([tool(options.bin, "llama-imatrix"), "-m", self.source, "-f", text, "-o", self.imatrix[1], *self.common])
        self.base = folder / "base.kld"
        run_tool([self.perplexity, "-m", self.source, "-f", text, *self.common, "--kl-divergence-base", self.base])
        if not self.base.is_file():
            raise JudgeError("llama-perplexity stored no logits; the text is too short for the tokens asked for")

    def measure(self, tensor, type_name):
        """Seconds for llama-quantize and for llama-perplexity, and the KLD with its error in nats."""
        kept = self.source_type
        embedding = type_name if tensor == "token_embd.weight" else kept
        output = type_name if tensor == "output.weight" else kept
        path = self.folder / "variant.gguf"
        # Overrides count only where the base type is quantized; every other tensor is sent back to the source's type.
        command = [self.quantize, *self.imatrix, "--token-embedding-type", embedding, "--output-tensor-type", output,
                   "--tensor-type", f"^{re.escape(tensor).lower()}$={type_name}", "--tensor-type", f".*={kept}",
                   self.source, path, "Q8_0", self.options.threads]
        quantize_s, _, _, _ = timed(command, self.folder, "quantize")
        self.check(path, tensor, type_name)
        command = [self.perplexity, "-m", path, "--kl-divergence", "--kl-divergence-base", self.base, *self.common]
        for attempt in range(4):
            try:
                perplexity_s, _, out, err = timed(command, self.folder, "perplexity")
                figures = parse_statistics(out.read_text(errors="replace") + err.read_text(errors="replace"))
                break
            except (MissingFigure, JudgeError) as failure:  # its log thread loses the last lines now and then, or crashes
                if attempt == 3:
                    raise
                say(f"{failure}; running it once more")
        path.unlink()
        return quantize_s, perplexity_s, figures["kld_mean"], figures["kld_error"]

    def check(self, path, tensor, type_name):
        types = {entry["name"]: entry["type"] for entry in inspect(self.options, path)["tensors"]}
        wrong = [entry["name"] for entry in self.info["tensors"]
                 if types[entry["name"]] != (type_name if entry["name"] == tensor else entry["type"])]
        if wrong:
            raise JudgeError(f"llama-quantize did not make the file asked for: {tensor} as {type_name}, but {wrong[0]} is {types[wrong[0]]}")


def inspect(options, path):
    return json.loads(subprocess.run([options.cerebellum, "inspect", str(path), "--json"], check=True, capture_output=True).stdout)


def bench_flops_per_token(info, ctx):
    """FLOPs per token of the matrix products that llama-bench computes for a prompt of ctx tokens, and remarks on what
    could not be counted."""
    metadata, architecture = info["metadata"], info["architecture"]
    n_experts, n_used = metadata.get(f"{architecture}.expert_count", 0), metadata.get(f"{architecture}.expert_used_count", 0)
    matrices = [t for t in info["tensors"] if layer_of(t["name"]) >= 0 and len(t["shape"]) >= 2]
    last = max((layer_of(t["name"]) for t in matrices), default=-1)
    weights, attention_layers = 0.0, set()
    for tensor in matrices:
        n = 1.0
        for dim in tensor["shape"]:
            n *= dim
        if "_exps." in tensor["name"] and n_experts:
            n *= n_used / n_experts
        if re.search(r"\.attn_(q|qkv)\.", tensor["name"]):
            attention_layers.add(layer_of(tensor["name"]))
        if layer_of(tensor["name"]) == last and role_of(tensor["name"]).startswith("ffn_"):
            continue
        weights += n
    remarks = []
    heads = metadata.get(f"{architecture}.attention.head_count")
    attention = 0.0
    if isinstance(heads, int) and heads > 0:
        width = metadata[f"{architecture}.embedding_length"] // heads
        key = metadata.get(f"{architecture}.attention.key_length", width)
        value = metadata.get(f"{architecture}.attention.value_length", width)
        cells = -(-ctx // 256) * 256  # llama.cpp pads the cache
        attention = 2.0 * cells * heads * (key + value) * len(attention_layers)
    elif attention_layers:
        remarks.append("heads differ by layer: attention's products are not in llama-bench's rate, so the ideal is too long")
    return 2.0 * weights + attention, remarks


def layers_on(options):
    return ["-ngl", "999" if options.device else "0"]


def bench_rate(options):
    """Prompt tokens per second by llama-bench."""
    output = subprocess.run([str(tool(options.bin, "llama-bench")), "-m", options.source, "-p", str(options.ctx), "-n", "0", "-ub",
                             str(max(512, options.ctx)), "-r", str(options.bench_runs), "-t", str(options.threads), "-fa", "off",
                             *layers_on(options), "-o", "json"], check=False, capture_output=True)
    if output.returncode != 0:
        raise JudgeError(f"llama-bench failed: {output.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
    return json.loads(output.stdout)[0]["avg_ts"]


def default_text(folder):
    """Our own sources: enough tokens for the default settings on any machine. What is timed does not depend on the text."""
    root = pathlib.Path(__file__).resolve().parent.parent
    path = folder / "sources.txt"
    files = sorted((root / "cerebellum").rglob("*.cpp")) + sorted((root / "cerebellum").rglob("*.h"))
    path.write_text("".join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
    return path


def minutes(seconds):
    return f"{seconds / 60:.1f} min" if seconds >= 90.0 else f"{seconds:.1f} s"


def report(result):
    ours, naive, ideal = result["ours"], result["naive"], result["ideal"]
    print(f"\n{result['source']}: {ours['pairs']} pairs of tensor and type, windows of {result['ctx']} tokens, {result['threads']} threads; "
          f"ours on {result['ours_tokens']} tokens, naive on {result['tokens']}")
    print(f"  ours   {minutes(ours['wall_s'])} in all; {ours['full_pairs']} pairs measured in full on "
          f"{' or '.join(map(str, ours['scored_positions']))} scored positions, the others at their block's end times a gain")
    print(f"         peak memory {ours['peak_bytes'] / 2**20:.0f} MiB; 2 x source + 512 MiB = {ours['memory_bar_bytes'] / 2**20:.0f} MiB")
    print(f"  naive  {naive['pair_s']:.2f} s per pair (mean of {len(naive['timed'])}; {naive['pair_min_s']:.2f} to {naive['pair_max_s']:.2f}), "
          f"so {minutes(naive['scaled_s'])} for all; {naive['scored_positions']} scored positions per pair, on other windows of the text:")
    for row in naive["timed"]:
        print(f"         {row['tensor']:<26} {row['type']:<8} quantize {row['quantize_s']:7.2f} s, perplexity {row['perplexity_s']:7.2f} s, "
              f"KLD {row['kld']:.2e} ± {row['kld_error']:.0e}; ours {row['ours_kld']:.2e} ± {row['ours_kld_error'] or math.nan:.0e} ({row['ours_tier']})")
    print(f"  ours is {result['ratio']:.1f} times faster")
    print(f"  ideal  {minutes(ideal['s'])}: {ideal['replayed_tflop']:.1f} TFLOP at {ideal['gflops']:.1f} GFLOP/s = "
          f"{minutes(ideal['flop_s'])}, quantizing {minutes(ideal['quantize_s'])}; llama-bench {ideal['bench_tokens_per_s']:.1f} tokens/s")
    print(f"  ours took {result['over_ideal']:.2f} times the ideal (replaying alone: {minutes(ideal['replay_s'])}, "
          f"{ideal['replay_over_flop']:.2f} times its part)")
    for remark in ideal["remarks"]:
        print(f"  note: {remark}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="high-precision GGUF")
    parser.add_argument("--bin", required=True, help="folder with llama.cpp's tools ('make -s llama-bin' prints it)")
    parser.add_argument("--text", help="plain text, packed or not (default: this repository's C++ sources)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens that each pair is measured on (default 4096)")
    parser.add_argument("--ours-tokens", type=int, help="tokens that ours measures on (default: as many)")
    parser.add_argument("--device", help="device that ours replays on; the others put all layers on it")
    parser.add_argument("--tensors", action="append", default=[], metavar="GLOB", help="only these tensors; repeatable")
    parser.add_argument("--ctx", type=int, default=512, help="tokens per window (default 512)")
    parser.add_argument("--pairs", type=int, default=6, help="pairs that the naive loop is timed on (default 6)")
    parser.add_argument("--types", help="only these types, in ours (default: all admissible)")
    parser.add_argument("--full", action="store_true", help="ours measures everything in the full tier")
    parser.add_argument("--no-naive-imatrix", action="store_true", help="llama-quantize without one: faster, and without llama-imatrix")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for all programs (default: all processors)")
    parser.add_argument("--bench-runs", type=int, default=5, help="repetitions of llama-bench (default 5)")
    parser.add_argument("--cerebellum", default="build/cerebellum", help="default build/cerebellum")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    if not pathlib.Path(options.source).is_file():
        raise JudgeError(f"{options.source} is not there")
    if not os.access(options.cerebellum, os.X_OK):
        raise JudgeError(f"{options.cerebellum} is not there; run 'make build' first")
    if options.pairs < 1 or options.tokens < options.ctx:
        parser.error("--pairs is at least 1, and --tokens at least one window (--ctx)")

    with tempfile.TemporaryDirectory(prefix="cerebellum-speed-") as scratch:
        folder = pathlib.Path(scratch)
        info = inspect(options, options.source)
        flops_per_token, remarks = bench_flops_per_token(info, options.ctx)
        with plain_text(options.text or default_text(folder), folder) as text:
            command = [options.cerebellum, "ablate", options.source, "--json", "--text", text, "--tokens",
                       options.ours_tokens or options.tokens, "--ctx", options.ctx, "--threads", options.threads, "--journal", folder / "journal.db"]
            if options.types:
                command += ["--types", options.types]
            if options.full:
                command += ["--full"]
            if options.device:
                command += ["--device", options.device]
            for pattern in options.tensors:
                command += ["--tensors", pattern]
            say("ours: " + " ".join(map(str, command)))
            wall_s, peak_bytes, out, err = timed(command, folder, "ablate")
            rows = json.loads(out.read_text())
            messages = err.read_text(errors="replace")
            summary = SUMMARY.search(messages)
            if not summary:
                raise JudgeError("cerebellum ablate did not print the FLOPs that it replayed")
            if "shorter than asked for" in messages:
                raise JudgeError("the text is too short for --tokens: ours measured on fewer; give a longer --text")
            say(f"ours: {wall_s:.1f} s")
            tokens_per_s = bench_rate(options)
            naive = Naive(options, info, text, folder)
            # llama-imatrix has no entry for embeddings, without which llama-quantize refuses some types: blocks only.
            pool = [row for row in rows if layer_of(row["tensor"]) >= 0] or rows
            measured = []
            for row in choose_pairs(pool, options.pairs):
                quantize_s, perplexity_s, kld, error = naive.measure(row["tensor"], row["type"])
                measured.append({"tensor": row["tensor"], "type": row["type"], "quantize_s": quantize_s, "perplexity_s": perplexity_s,
                                 "kld": kld, "kld_error": error, "ours_kld": row["kld"], "ours_kld_error": row["kld_error"],
                                 "ours_tier": row["tier"]})
                say(f"naive: {row['tensor']} {row['type']}: {quantize_s + perplexity_s:.1f} s")

    pair_s = [row["quantize_s"] + row["perplexity_s"] for row in measured]
    full_rows = [row for row in rows if row["tier"] == "full"]
    windows = options.tokens // options.ctx
    scaled_s = sum(pair_s) / len(pair_s) * len(rows)
    gflops = tokens_per_s * flops_per_token / 1e9
    replayed_tflop, replay_s, quantize_s = float(summary.group(1)), seconds_of(summary.group(2)), seconds_of(summary.group(3))
    flop_s = replayed_tflop * 1000.0 / gflops
    ideal_s = flop_s + quantize_s
    result = {
        "source": pathlib.Path(options.source).name, "tokens": options.tokens, "ours_tokens": options.ours_tokens or options.tokens, "ctx": options.ctx, "threads": options.threads,
        "ours": {"wall_s": wall_s, "pairs": len(rows), "full_pairs": len(full_rows), "peak_bytes": peak_bytes,
                 "memory_bar_bytes": 2 * info["bytes"] + 512 * 2**20, "scored_positions": sorted({int(row["tokens"]) for row in full_rows})},
        "naive": {"pair_s": sum(pair_s) / len(pair_s), "pair_min_s": min(pair_s), "pair_max_s": max(pair_s), "scaled_s": scaled_s,
                  "scored_positions": windows * (options.ctx - 1 - options.ctx // 2), "timed": measured},
        "ideal": {"s": ideal_s, "replayed_tflop": replayed_tflop, "gflops": gflops, "flop_s": flop_s, "quantize_s": quantize_s,
                  "replay_s": replay_s, "replay_over_flop": replay_s / flop_s if flop_s > 0.0 else float("nan"), "bench_tokens_per_s": tokens_per_s,
                  "remarks": remarks + (["few TFLOP: ours prints one decimal, so the ideal is coarse"] if replayed_tflop < 5.0 else [])},
        "ratio": scaled_s / wall_s,
        "over_ideal": wall_s / ideal_s if ideal_s > 0.0 else float("nan"),
    }
    report(result)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError, subprocess.CalledProcessError) as error:
        say(f"speed.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
