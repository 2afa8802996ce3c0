#!/usr/bin/env python3
"""Whether two builds of the program make the same files: for changes that are to change nothing.

    scripts/same_outputs.py OLD/cerebellum NEW/cerebellum MODEL.gguf...

For every model, one after the other and in the same folder: quantize (with everything beside its output), ablate --json,
allocate, build, report and eval kld --json, on LICENSE and CONTRIBUTING.md as text. Files are compared byte by byte, but for
times and dates, of which there are none in a GGUF. Journals are not: 'ablate --json' says what is in them. Exit code 1 where
anything differs; the two folders are then kept.
"""

import argparse
import filecmp
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Names of what is measured with a clock, or says when and where.
CLOCK = re.compile(r"^(stages|machine|date|created|generated|wall_s|.*_s|.*seconds.*)$")
DATE = re.compile(rb"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?)?")
NUMBER_OF_SECONDS = re.compile(rb'"(wall_s|quantize_s|device_busy_s|waiting_s|measured_before_s|seconds)":\s*[-+.e0-9]+')


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if not CLOCK.match(key)}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def content(path):
    """What of a file is to be the same."""
    data = path.read_bytes()
    if path.suffix == ".gguf":
        return data
    if path.suffix == ".json":
        return json.dumps(timeless(json.loads(data)), sort_keys=True).encode()
    return DATE.sub(b"DATE", NUMBER_OF_SECONDS.sub(b"", data))


def run(program, folder, arguments, output=None):
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, check=False,
                          env=os.environ | {"XDG_CONFIG_HOME": "/nonexistent"})
    if done.returncode != 0:
        sys.exit(f"{program} {' '.join(arguments)}\nexit code {done.returncode}: {done.stderr.decode(errors='replace')}")
    if output:
        (folder / output).write_bytes(done.stdout)


def make_files(program, model, folder):
    """Everything that the program makes of one model, in a folder."""
    text = folder / "text.txt"
    text.write_text("".join((REPOSITORY / name).read_text() for name in ("LICENSE", "CONTRIBUTING.md")))
    size = str(int(model.stat().st_size * 0.34))
    run_options = ["--ctx", "64", "--threads", "1"]
    measuring = [*run_options, "--tokens", "192", "--text", "text.txt", "--types", "q2_K,q3_K,q4_0,q4_K,q6_K,q8_0,iq4_nl",
                 "--journal", "journal.db"]
    run(program, folder, ["quantize", str(model), "--size", size, *measuring, "-o", "out.gguf", "--json"], "quantize.json")
    run(program, folder, ["quantize", str(model), "--size", size, *measuring[:-2], "--journal", "feedback.db", "--rounding", "auto",
                          "-o", "feedback.gguf", "--json"], "feedback.json")
    run(program, folder, ["ablate", str(model), *measuring, "--json"], "ablate.json")
    run(program, folder, ["allocate", str(model), "--journal", "journal.db", "--size", size, "--pin", "output=q6_K",
                          "-o", "recipe.json", "--json"], "allocate.json")
    run(program, folder, ["build", str(model), "--recipe", "recipe.json", "--imatrix", "out.imatrix.gguf", "-o", "built.gguf"])
    run(program, folder, ["report", str(model), "--journal", "journal.db", "--results", "out.results.json", "-o", "report.html"])
    run(program, folder, ["eval", "kld", str(model), "out.gguf", "--text", "text.txt", *run_options, "--json"], "kld.json")


def compare(old, new):
    """Names of the files of two folders that differ, or that only one of them has."""
    names = sorted({path.name for folder in (old, new) for path in folder.iterdir() if path.suffix not in (".db", ".lock")
                    and not path.name.endswith(("-wal", "-shm"))})
    wrong = []
    for name in names:
        pair = old / name, new / name
        if not all(path.exists() for path in pair):
            wrong.append(f"{name}: only one build makes it")
        elif not filecmp.cmp(*pair, shallow=False) and content(pair[0]) != content(pair[1]):
            wrong.append(name)
    return names, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="same-outputs-"))
    different = False
    for number, model in enumerate(options.models):
        folders = []
        for which, program in (("old", options.old), ("new", options.new)):
            folder = work / "run"
            folder.mkdir()
            make_files(program.resolve(), model.resolve(), folder)
            folders.append(folder.rename(work / f"{number}-{which}"))
        names, wrong = compare(*folders)
        print(f"{model.name}: {len(names) - len(wrong)} of {len(names)} files are the same" + "".join(f"\n  {w}" for w in wrong))
        different = different or bool(wrong)
    if different:
        sys.exit(f"the files are in {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
