#!/usr/bin/env python3
"""Judges GGUF files against the model they were made from, with llama.cpp's own llama-perplexity --kl-divergence.

    bench/judge.py --source SRC.gguf --text wiki.test.raw.gz --bin "$(make -s llama-bin)" FILE.gguf...

The source's logits on the text are stored once (a temporary file, or the one that --base names, which is reused only
for the same source, text and settings); then each file is run on the same tokens. Scored is the second half of each
window of --ctx tokens. llama-perplexity stores log-probabilities in 16 bits, so a file identical to the source shows
a KLD a little above zero: --floor measures it. Standard errors are llama-perplexity's, over single positions.
"""

import argparse
import bz2
import contextlib
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile


class JudgeError(Exception):
    """One line: what failed, where, what to do."""


class MissingFigure(JudgeError):
    """llama-perplexity ended well, but a figure is not in what it printed."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def tool(bin_dir, name):
    path = pathlib.Path(bin_dir) / name
    if not path.is_file():
        raise JudgeError(f"{path} is not there; --bin takes the folder that 'make -s llama-bin' prints")
    return path.absolute()


def run_tool(command, cwd=None):
    """Runs a tool of llama.cpp and returns its whole output; its last lines go into the error. One that a signal ended is
    run once more, in case it was llama-perplexity's log thread, which loses lines now and then as well."""
    for attempt in range(2):
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", cwd=cwd, check=False, env={**os.environ, "GGML_NO_BACKTRACE": "1"})
        if done.returncode >= 0 or attempt == 1:
            break
        say(f"{pathlib.Path(command[0]).name} was ended by signal {-done.returncode}; running it once more")
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines()
        telling = [line for line in lines if re.search(r" E |assert", line)] or lines
        raise JudgeError(f"{pathlib.Path(command[0]).name} failed with exit code {done.returncode}: "
                         f"{' | '.join(telling[-2:])}")
    return done.stdout


def file_digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def plain_text(path, folder):
    """The text as an uncompressed file: itself, or unpacked into `folder`."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise JudgeError(f"the text {path} is not there")
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix)
    if opener is None:
        yield path.absolute()
        return
    plain = pathlib.Path(folder) / path.stem
    with opener(path, "rb") as packed, open(plain, "wb") as out:
        shutil.copyfileobj(packed, out)
    yield plain.absolute()


NUMBER = r"(-?[0-9.]+|nan|-nan|inf|-inf)"
FIGURES = {
    "kld_mean": rf"\bMean +KLD: +{NUMBER}",
    "kld_error": rf"\bMean +KLD: +{NUMBER} ± +{NUMBER}",
    "kld_median": rf"\bMedian +KLD: +{NUMBER}",
    "kld_p95": rf"\b95\.0% +KLD: +{NUMBER}",
    "kld_p99": rf"\b99\.0% +KLD: +{NUMBER}",
    "ppl": rf"\bMean PPL\(Q\) +: +{NUMBER}",
    "ppl_error": rf"\bMean PPL\(Q\) +: +{NUMBER} ± +{NUMBER}",
    "ppl_base": rf"\bMean PPL\(base\) +: +{NUMBER}",
    "same_top_percent": rf"\bSame top p: +{NUMBER}",
    "same_top_error": rf"\bSame top p: +{NUMBER} ± +{NUMBER}",
}


def parse_statistics(output):
    """The figures of llama-perplexity's statistics."""
    figures = {}
    for name, pattern in FIGURES.items():
        match = re.search(pattern, output, re.MULTILINE)
        if not match:
            raise MissingFigure(f"llama-perplexity printed no {name}; is this the pinned llama.cpp?")
        figures[name] = float(match.groups()[-1])
    return figures


class Judge:
    """Holds the source's stored logits on one text; use it as a context manager. Runs one tool at a time."""

    def __init__(self, source, text, bin_dir, ctx=256, chunks=-1, threads=None, base=None, flash_attention="off",
                 gpu_layers=0):
        if not pathlib.Path(source).is_file():
            raise JudgeError(f"the source {source} is not there")
        self.source = pathlib.Path(source).absolute()
        self.text = text
        self.perplexity = tool(bin_dir, "llama-perplexity")
        # Repacked weights change the figures a little, and crash llama.cpp v0.5.0 on processors with AMX.
        self.common = ["-c", ctx, "--chunks", chunks, "-ngl", gpu_layers, "-fa", flash_attention, "--no-repack",
                       "-t", threads or os.cpu_count() or 1]
        self.base = pathlib.Path(base).absolute() if base else None
        self.folder = None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="cerebellum-judge-")
        try:
            self._make_base()
        except BaseException:
            self.folder.cleanup()
            raise
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def _make_base(self):
        path = self.base or pathlib.Path(self.folder.name) / "base.kld"
        key_path = path.with_name(path.name + ".key")
        key = None
        if self.base:
            # Threads change nothing that is scored.
            key = json.dumps([file_digest(self.source), file_digest(self.text), *map(str, self.common[:-2])])
            if path.is_file() and key_path.is_file() and key_path.read_text() == key:
                self.base = path
                return
            key_path.unlink(missing_ok=True)
        with plain_text(self.text, self.folder.name) as text:
            say(f"storing the logits of {self.source.name} on {pathlib.Path(self.text).name}")
            run_tool([self.perplexity, "-m", self.source, "-f", text, *self.common, "--kl-divergence-base", path])
        if not path.is_file():
            raise JudgeError(f"llama-perplexity stored no logits; is {self.text} shorter than two windows?")
        if key:
            key_path.write_text(key)
        self.base = path

    def judge(self, path):
        """Figures of one file: kld_mean and kld_error in nats, ppl, same_top_percent, size_bytes."""
        path = pathlib.Path(path)
        if not path.is_file():
            raise JudgeError(f"{path} is not there")
        command = [self.perplexity, "-m", path.absolute(), "--kl-divergence", "--kl-divergence-base", self.base,
                   *self.common]
        for attempt in range(4):
            try:
                figures = parse_statistics(run_tool(command))
                break
            except MissingFigure as missing:  # on a busy machine its log thread loses lines
                if attempt == 3:
                    raise
                say(f"{missing}; running it once more")
        return {"file": path.name, "size_bytes": path.stat().st_size, **figures}


def print_table(rows, out=sys.stdout):
    width = max([len(row["file"]) for row in rows] + [4])
    print(f"{'file':<{width}} {'bytes':>13} {'KLD, nats':>22} {'perplexity':>20} {'same top token':>17}", file=out)
    for row in rows:
        kld = f"{row['kld_mean']:.6f} ± {row['kld_error']:.6f}" if not math.isnan(row["kld_mean"]) else "nan"
        ppl = f"{row['ppl']:.4f} ± {row['ppl_error']:.4f}"
        top = f"{row['same_top_percent']:.2f} ± {row['same_top_error']:.2f} %"
        print(f"{row['file']:<{width}} {row['size_bytes']:>13,} {kld:>22} {ppl:>20} {top:>17}", file=out)


def add_judge_options(parser):
    parser.add_argument("--bin", required=True, help="folder with llama.cpp's tools ('make -s llama-bin' prints it)")
    parser.add_argument("--ctx", type=int, default=256, help="tokens per window (default 256)")
    parser.add_argument("--chunks", type=int, default=-1, help="number of windows (default: all of the text)")
    parser.add_argument("--threads", type=int, default=None, help="default: all processors; on a busy machine 1 is much faster, as idle threads spin")
    parser.add_argument("--base", help="keep the source's logits in this file and reuse them")
    parser.add_argument("--flash-attn", default="off", choices=["on", "off"],
                        help="one setting for source and files alike (default off)")
    parser.add_argument("--gpu-layers", type=int, default=0,
                        help="layers on the GPU, with a llama-perplexity built for it (default 0)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="the GGUF that the files were made from")
    parser.add_argument("--text", required=True, help="the text to judge on; .gz and .bz2 are unpacked")
    add_judge_options(parser)
    parser.add_argument("--floor", action="store_true", help="also judge the source against itself")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON here ('-': stdout, instead of the table)")
    parser.add_argument("files", nargs="+", metavar="FILE")
    options = parser.parse_args()
    rows = []
    with Judge(options.source, options.text, options.bin, options.ctx, options.chunks, options.threads, options.base,
               options.flash_attn, options.gpu_layers) as judge:
        for path in ([options.source] if options.floor else []) + options.files:
            say(f"judging {path}")
            rows.append(judge.judge(path))
    if options.json == "-":
        json.dump(rows, sys.stdout, indent=1)
        print()
        return
    print_table(rows)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (JudgeError, OSError) as error:
        say(f"judge.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
