#!/usr/bin/env python3
"""Checks that the folders of cerebellum/ form a ladder: each includes only itself and the folders above it.

Usage: check-layers.py [ROOT]      check the tree at ROOT (default: this script's repository); exit 1 on a violation
       check-layers.py --self-test prove on small made-up trees that violations are found

Rules, for *.h and *.cpp below cerebellum/ (unit tests beside the code obey them too):
  - a folder includes only itself and the folders before it in LADDER;
  - only llama/ includes llama.h, llama-cpp.h and llama-ext.h;
  - our own headers are included by their full path, "cerebellum/<folder>/x.h";
  - std::regex is for tests and for the files of REGEX: it takes a frame of the stack for each character, so what a model,
    a server or a file says is scanned by hand;
  - JSON and CBOR are read by core/json_text, which bounds their length and depth, and JSON is written by it, as
    nlohmann's dump() throws at names that are no UTF-8;
  - a folder that LADDER does not know is an error: give it its place here and in CONTRIBUTING.md.
"""

import pathlib
import re
import sys
import tempfile

LADDER = ("core gguf llama replay calibrate quantize journal sweep distribute predict allocate build evaluate report "
          "pipeline cli").split()
LLAMA_HEADERS = {"llama.h", "llama-cpp.h", "llama-ext.h"}
# Patterns of the user's, as llama.cpp reads them, on names of tensors; lines of llama.cpp's log. Each bounds both.
REGEX = {"llama/presets.cpp", "core/name_pattern.h"}
# Where nlohmann's readers are called; the ablation's refuses keys that occur twice and bounds the depth itself.
JSON = {"core/json_text.cpp", "predict/import_ablation.cpp"}
WRITES_JSON = re.compile(r"\.dump\(")
READS_JSON = re.compile(r"\bjson::(parse|accept|sax_parse|from_\w+)\(")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def check_file(path, root):
    """Yields (line number, message) for every line of the file that breaks a rule."""
    folder = path.relative_to(root / "cerebellum").parts[0]
    rank = LADDER.index(folder)
    name = path.relative_to(root / "cerebellum").as_posix()
    tests = path.stem.endswith("_test")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if READS_JSON.search(line) and name not in JSON and not tests:
            yield number, f"{folder}/ reads JSON without limits: use cerebellum/core/json_text.h"
        if WRITES_JSON.search(line) and name != "core/json_text.cpp" and not tests:
            yield number, f"{folder}/ writes JSON by dump(), which throws: use json_to_text() of core/json_text.h"
        match = INCLUDE.match(line)
        if not match:
            continue
        quote, header = match.groups()
        if header == "regex" and name not in REGEX and not tests:
            yield number, f"{folder}/ includes <regex>: it overflows the stack on long texts; scan by hand"
        if header.split("/")[-1] in LLAMA_HEADERS and not header.startswith("cerebellum/"):
            if folder != "llama":
                yield number, f"{folder}/ includes {header}: only llama/ may; use what cerebellum/llama/ offers"
        elif header.startswith("cerebellum/"):
            parts = header.split("/")
            if len(parts) == 2:  # cerebellum/version.h, cerebellum/httplib.h: generated
                continue
            if parts[1] not in LADDER:
                yield number, f'"{header}": there is no layer {parts[1]}/'
            elif LADDER.index(parts[1]) > rank:
                yield number, (f'{folder}/ includes "{header}": {parts[1]}/ comes after {folder}/ in the ladder '
                               f"({' '.join(LADDER)})")
        elif quote == '"' and (path.parent / header).exists():
            yield number, f'"{header}": include our own headers by their full path, "cerebellum/<folder>/x.h"'


def check_tree(root):
    """Returns the violations as "file:line: message"."""
    problems = []
    for path in sorted((root / "cerebellum").rglob("*")):
        if path.suffix not in (".h", ".cpp") or not path.is_file():
            continue
        name = path.relative_to(root)
        if len(name.parts) < 3 or name.parts[1] not in LADDER:
            problems.append(f"{name}:1: not in a folder of the ladder ({' '.join(LADDER)})")
            continue
        problems += [f"{name}:{line}: {message}" for line, message in check_file(path, root)]
    return problems


SELF_TESTS = [  # file, content, expected beginning of the only violation (empty: none)
    ("core/a.cpp", '#include "cerebellum/core/a.h"\n#include <ggml.h>\n', ""),
    ("cli/a.cpp", '#include "cerebellum/pipeline/a.h"\n#include "cerebellum/version.h"\n', ""),
    ("llama/a.cpp", "#include <llama.h>\n#include <llama-cpp.h>\n", ""),
    ("core/a.cpp", '#include <vector>\n#include "cerebellum/gguf/a.h"\n', "cerebellum/core/a.cpp:2: core/ includes"),
    ("allocate/a_test.cpp", '#include "cerebellum/build/a.h"\n', "cerebellum/allocate/a_test.cpp:1: allocate/"),
    ("replay/a.h", "  #  include <llama.h>\n", "cerebellum/replay/a.h:1: replay/ includes llama.h"),
    ("replay/a.cpp", '#include "llama-ext.h"\n', "cerebellum/replay/a.cpp:1: replay/ includes llama-ext.h"),
    ("core/a.cpp", '#include "a.cpp"\n', 'cerebellum/core/a.cpp:1: "a.cpp": include our own'),
    ("core/a.cpp", '#include "cerebellum/nowhere/a.h"\n', 'cerebellum/core/a.cpp:1: "cerebellum/nowhere/a.h"'),
    ("evaluate/a.cpp", "#include <regex>\n", "cerebellum/evaluate/a.cpp:1: evaluate/ includes <regex>"),
    ("evaluate/a_test.cpp", "#include <regex>\n", ""),
    ("core/name_pattern.h", "#include <regex>\n", ""),
    ("cli/a.cpp", "auto a = nlohmann::json::parse(text);\n", "cerebellum/cli/a.cpp:1: cli/ reads JSON without"),
    ("cli/a_test.cpp", "auto a = json::from_cbor(text);\n", ""),
    ("core/json_text.cpp", "auto a = json::parse(text);\n", ""),
    ("cli/a.cpp", "print(value.dump(2));\n", "cerebellum/cli/a.cpp:1: cli/ writes JSON by dump()"),
    ("cli/a_test.cpp", "value.dump();\n", ""),
    ("core/json_text.cpp", "return value.dump(indent);\n", ""),
    ("attic/a.cpp", "", "cerebellum/attic/a.cpp:1: not in a folder"),
]


def self_test():
    for name, content, expected in SELF_TESTS:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            path = root / "cerebellum" / name
            path.parent.mkdir(parents=True)
            path.write_text(content, encoding="utf-8")
            found = check_tree(root)
            right = not found if not expected else len(found) == 1 and found[0].startswith(expected)
            if not right:
                print(f"check-layers.py --self-test: {name} with {content!r}: expected {expected!r}, found {found}",
                      file=sys.stderr)
                return 1
    print(f"check-layers.py: self-test passed ({len(SELF_TESTS)} cases)", file=sys.stderr)
    return 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__, file=sys.stderr)
        return 2
    root = pathlib.Path(arguments[0]) if arguments else pathlib.Path(__file__).resolve().parent.parent
    if not (root / "cerebellum").is_dir():
        print(f"check-layers.py: {root} has no folder cerebellum/", file=sys.stderr)
        return 2
    problems = check_tree(root)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
