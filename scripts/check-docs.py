#!/usr/bin/env python3
"""Checks that the documentation still speaks of what there is.

Usage: check-docs.py                       links between our pages, make targets, scripts and their options, CHANGELOG
       check-docs.py --program FILE        also every `cerebellum …` command: subcommands and options must exist
       check-docs.py --self-test           prove on made-up pages that violations are found

Commands are looked for in code blocks and inline code of README.md, CONTRIBUTING.md, CHANGELOG.md, docs/*.md and
models/README.md. Words in capitals, variables and <...> stand for anything; lines ending in a backslash go on.
Exit code 1 on a violation, each printed as file:line: message.
"""

import argparse
import functools
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"(`+)(.+?)\1")
OPTION = re.compile(r"^(--[a-z][a-z0-9-]*|-[a-zA-Z])(=.*)?$")
PLACEHOLDER = re.compile(r"^[A-Z][A-Z0-9_.|-]*$|^[\[<$\"']|[…]")


def pages(root):
    found = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md")]
    return [page for page in found + sorted((root / "docs").rglob("*.md")) if page.exists()]


def slug(heading):
    """The anchor of a heading, as both GitHub and Python-Markdown make it for plain text."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[^\w\- ]", "", text.replace("`", "").lower()).strip()
    return re.sub(r"[ ]+", "-", text)


def code_and_prose(text):
    """Yields (line number, "block" | "code" | "prose", text): the lines of code blocks, the pieces of inline code, and
    lines of prose."""
    fence = None
    previous_blank = True
    in_indented = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if fence:
            if stripped.startswith(fence):
                fence = None
            else:
                yield number, "block", line
            continue
        opening = re.match(r"^\s*(```+|~~~+)", line)
        if opening:
            fence = opening.group(1)
            continue
        if line.startswith("    ") and stripped and (previous_blank or in_indented):
            in_indented = True
            yield number, "block", stripped
            continue
        if stripped:
            in_indented = False
        previous_blank = not stripped
        yield number, "prose", line
        for match in INLINE_CODE.finditer(line):
            yield number, "code", match.group(2).replace("\\|", "|")


def commands(text):
    """Yields (line number, words) of everything that looks like a command line."""
    pending, start = "", 0
    for number, kind, line in code_and_prose(text):
        if kind == "prose":
            continue
        if kind == "block" and line.rstrip().endswith("\\"):
            start = start or number
            pending += line.rstrip()[:-1] + " "
            continue
        line, at = pending + line, start or number
        pending, start = "", 0
        line = re.sub(r"\$\([^()]*\)", "$X", line)  # what a command's output stands for
        for part in re.split(r"\s(?:\||&&|;|\|\|)\s|(?:^|\s)<\(|\)(?:\s|$)", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            while words and re.match(r"^([A-Z_]+=.*|sudo|exec|\$)$", words[0]):
                words.pop(0)
            if words:
                yield at, words


class Program:
    """What an executable's --help says it takes."""

    def __init__(self, path):
        self.path = path

    @functools.lru_cache(maxsize=None)
    def help(self, *subcommands):
        result = subprocess.run([self.path, *subcommands, "--help"], capture_output=True, text=True, check=False)
        return result.stdout if result.returncode == 0 else None

    @functools.lru_cache(maxsize=None)
    def subcommands(self, *path):
        text = self.help(*path) or ""
        section = re.search(r"^S(?:ubcommands|UBCOMMANDS):\n((?:  .*\n|\n)*)", text + "\n", re.M)
        return set(re.findall(r"^  ([a-z][a-z0-9-]*)\b", section.group(1), re.M)) if section else set()

    @functools.lru_cache(maxsize=None)
    def options(self, *path):
        return set(re.findall(r"(?<![\w-])(--?[A-Za-z][A-Za-z0-9-]*)", self.help(*path) or ""))

    def complaints(self, words):
        """Of a command line without the program's own name."""
        path = []
        words = list(words)
        while words and not words[0].startswith("-") and self.subcommands(*path):
            alternatives = words[0].split("|")
            if PLACEHOLDER.search(words[0]) or not re.match(r"^[a-z]", words[0]):
                return
            unknown = [word for word in alternatives if word not in self.subcommands(*path)]
            for word in unknown:
                yield f"there is no '{' '.join(['cerebellum', *path, word])}'"
            if unknown or len(alternatives) > 1:
                return
            path.append(words.pop(0))
        for word in words:
            match = OPTION.match(word)
            if match and match.group(1) not in self.options(*path):
                yield f"'{' '.join(['cerebellum', *path])}' has no {match.group(1)}"


def script_complaints(root, words):
    """Of commands that run a script of ours, or make."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(encoding="utf-8"), re.M))
        for word in words[1:]:
            if re.match(r"^[a-z][a-z-]*$", word) and word not in targets:
                yield f"the Makefile has no target '{word}'"
        return
    for index, word in enumerate(words[:2]):
        if re.match(r"^(\./)?(scripts|bench|tests)/[\w./-]+\.(py|sh)$", word):
            script = root / word
            if not script.exists():
                yield f"there is no {word}"
                return
            text = script.read_text(encoding="utf-8")
            for module in re.findall(r"^from (\w+) import", text, re.M):  # options that scripts share
                if (beside := script.parent / f"{module}.py").exists():
                    text += beside.read_text(encoding="utf-8")
            known = set(re.findall(r"--[a-z][a-z0-9-]*", text))
            for option in words[index + 1:]:
                match = OPTION.match(option)
                if match and match.group(1).startswith("--") and match.group(1) not in known:
                    yield f"{word} has no {match.group(1)}"
            return


def link_complaints(page, text):
    for number, kind, line in code_and_prose(text):
        if kind != "prose":
            continue
        for match in LINK.finditer(INLINE_CODE.sub("", line)):
            target = match.group(1) or match.group(2)
            if re.match(r"^[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            if not file.exists():
                yield number, f"dead link: {target}"
            elif anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ +(.*)$", file.read_text(encoding="utf-8"), re.M)
                if anchor not in {slug(heading) for heading in headings}:
                    yield number, f"dead link: {file.name} has no heading for #{anchor}"


def changelog_complaints(root):
    version = re.search(r"^project\(cerebellum VERSION ([0-9.]+)", (root / "CMakeLists.txt").read_text(), re.M).group(1)
    changelog = root / "CHANGELOG.md"
    first = re.search(r"^## \[([^\]]*)\]", changelog.read_text(encoding="utf-8"), re.M)
    if not first or first.group(1) != version:
        yield changelog, 1, f"the first entry has to be that of CMakeLists.txt's version {version}"


def check(root, program=None):
    problems = []
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        problems += [(page, *problem) for problem in link_complaints(page, text)]
        for number, words in commands(text):
            name = words[0].rsplit("/", 1)[-1]
            if name == "cerebellum" and program and len(words) > 1:
                problems += [(page, number, message) for message in program.complaints(words[1:])]
            else:
                problems += [(page, number, message) for message in script_complaints(root, words)]
    problems += changelog_complaints(root)
    return [f"{page.relative_to(root)}:{number}: {message}" for page, number, message in problems]


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "docs").mkdir()
        (root / "bench").mkdir()
        (root / "bench/speed.py").write_text('parser.add_argument("--tokens")\n')
        (root / "CMakeLists.txt").write_text("project(cerebellum VERSION 1.2.0)\n")
        (root / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.0]\n")
        (root / "Makefile").write_text("demo: build\n\techo\n")
        fake = root / "cerebellum"
        fake.write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            "--help) printf 'OPTIONS:\\n  -h, --help\\n\\nSUBCOMMANDS:\\n  build  Write\\n  imatrix  Matrices\\n' ;;\n"
            "'imatrix --help') printf 'SUBCOMMANDS:\\n  show  Look\\n' ;;\n"
            "*) printf 'OPTIONS:\\n  -o, --output FILE\\n      --size SIZE\\n' ;;\n"
            "esac\n")
        fake.chmod(0o755)
        good = ("# Good page\n\n[a](docs/a.md#two-words), `cerebellum build --size 4GB`, `cerebellum COMMAND --help`\n\n"
                "    cerebellum build M.gguf \\\n      --size 3GB -o out.gguf | head\n    make demo\n\n"
                "```\npython3 bench/speed.py --tokens 5\ncerebellum imatrix show x\n```\n")
        (root / "README.md").write_text(good)
        (root / "docs/a.md").write_text("# Two words\n")
        program = Program(str(fake))
        assert check(root, program) == [], check(root, program)
        bad = {
            "[a](docs/b.md)": "dead link: docs/b.md",
            "[a](docs/a.md#three)": "has no heading for #three",
            "`cerebellum bild`": "there is no 'cerebellum bild'",
            "`cerebellum imatrix show|merge x`": "there is no 'cerebellum imatrix merge'",
            "`build/cerebellum build x --budget=4`": "'cerebellum build' has no --budget",
            "\n    cerebellum build \\\n      --sise 4": "'cerebellum build' has no --sise",
            "`make demos`": "no target 'demos'",
            "`bench/speed.py --token 4`": "bench/speed.py has no --token",
            "`python3 bench/sped.py`": "there is no bench/sped.py",
        }
        for text, message in bad.items():
            (root / "README.md").write_text(good + "\n" + text + "\n")
            problems = check(root, program)
            assert len(problems) == 1 and message in problems[0], (text, problems)
        (root / "README.md").write_text(good)
        (root / "CMakeLists.txt").write_text("project(cerebellum VERSION 1.3.0)\n")
        assert len(check(root)) == 1
    print("check-docs.py: self-test passed")


def main():
    parser = argparse.ArgumentParser(description="Checks that the documentation speaks of what there is.")
    parser.add_argument("--program", help="the built executable")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        self_test()
        return 0
    root = pathlib.Path(__file__).resolve().parent.parent
    problems = check(root, Program(args.program) if args.program else None)
    for problem in problems:
        print(problem)
    print(f"documentation: {len(problems)} problem(s) on {len(pages(root))} pages", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
