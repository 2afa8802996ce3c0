#!/usr/bin/env python3
"""Collects the text that the embedded model is trained on.

    corpus.py prose FOLDER OUT.txt            English prose from Debian packages (downloaded to FOLDER, which is kept)
    corpus.py python OUT.txt PACKAGE...       Python source of installed packages; "stdlib" is the standard library
    corpus.py wikitext OUT.txt FILE...        files of WikiText (plain or .gz), cut at the ends of lines

OUT holds documents separated by NUL bytes. Each command prints what it took from where as JSON, for the model's card.
"""

import argparse
import concurrent.futures
import gzip
import hashlib
import html.parser
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import sysconfig
import zlib

# Section "main" of Debian 12, chosen for much running text in few bytes; licences as their copyright files state them.
PROSE_PACKAGES = """
    anarchism dict-gcide dict-foldoc dict-jargon dict-devil fortunes r-cran-janeaustenr debian-reference-en
    developers-reference debian-faq debian-kernel-handbook doc-debian libreoffice-help-en-us
""".split()
STOP_WORDS = set("the of and to in is a that it for as with on by be are this or from an at not which can you if".split())
BLOCKS = set("p li dd dt h1 h2 h3 h4 h5 h6 td th div pre blockquote br tr section title item note para".split())
HIDDEN = set("script style head nav pre code svg".split())

R_DATA = ".rdb"
MARKUP = (".html", ".htm", ".xhtml", ".page", ".xml", ".docbook", ".utf8")
PLAIN = (".txt", ".pod", ".rst", ".md", ".dict", ".info")


class Paragraphs(html.parser.HTMLParser):
    """The running text of a page (HTML, or XML of the same kind), one entry for each block."""

    def __init__(self):
        super().__init__()
        self.found, self.current, self.hidden = [], [], 0

    def flush(self):
        self.found.append(" ".join("".join(self.current).split()))
        self.current = []

    def handle_starttag(self, tag, attributes):
        if tag in BLOCKS:
            self.flush()
        # In a sentence, <code> is a word; as a block it stands in <pre>.
        if tag in HIDDEN and tag != "code":
            self.hidden += 1

    def handle_endtag(self, tag):
        if tag in HIDDEN and tag != "code":
            self.hidden = max(0, self.hidden - 1)
        if tag in BLOCKS:
            self.flush()

    def handle_data(self, data):
        if not self.hidden:
            self.current.append(data)


def plain_name(path):
    return path.name.lower().removesuffix(".gz").removesuffix(".dz")


def is_text(path):
    name = plain_name(path)
    return name.endswith((R_DATA, *MARKUP, *PLAIN)) or "." not in name or re.search(r"\.info-\d+$", name) is not None


def r_strings(data):
    """The strings of an R data base (entries: size, zlib stream), one a line of a book; an empty one ends a paragraph."""
    lines = []
    while len(data) > 4:
        inflate = zlib.decompressobj()
        entry = inflate.decompress(data[4:])
        data = inflate.unused_data
        # A string is 4 bytes of flags, the last of which is its kind, then its length.
        for found in re.finditer(rb"\x00\x04\x00\x09(....)", entry, re.DOTALL):
            size = int.from_bytes(found[1], "big")
            if size < 1000:
                lines.append(entry[found.end() : found.end() + size].decode("utf-8", "replace"))
    return [" ".join(block.split()) for block in "\n".join(lines).split("\n\n")]


def paragraphs_of(path, data):
    name = plain_name(path)
    if name.endswith(R_DATA):
        return r_strings(data)
    text = data.decode("utf-8", "replace")
    if name.endswith(MARKUP):
        parser = Paragraphs()
        parser.feed(text)
        parser.flush()
        return parser.found
    if name.endswith(".pod"):
        text = re.sub(r"[A-Z]<+ ?(.*?) ?>+", r"\1", text)
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]


def is_prose(paragraph):
    words = paragraph.split()
    if len(words) < 8 or len(paragraph) > 20_000:
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    known = sum(word.lower().strip(".,;:()\"'") in STOP_WORDS for word in words)
    return letters >= 0.8 * len(paragraph) and known >= 0.15 * len(words) and sum(map(ord, paragraph)) < 130 * len(paragraph)


def wikitext_style(paragraph):
    """Punctuation set off by blanks, as WikiText has it."""
    styled = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", paragraph)
    styled = re.sub(r"(?<=\d),(?=\d)", " @,@ ", styled)
    styled = re.sub(r"(?<=\d)\.(?=\d)", " @.@ ", styled)
    styled = re.sub(r"([,;:!?()\[\]\"“”])", r" \1 ", styled)
    styled = re.sub(r"(\w)('s|'re|'ve|'ll|'d|'m)\b", r"\1 \2", styled)
    styled = re.sub(r"\.(?=\s|$)", " .", styled)
    return " " + " ".join(styled.split()) + " "


def prose_of(path):
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    if b"\0" in data[:4096] and path.suffix != R_DATA:
        return []
    return [paragraph for paragraph in paragraphs_of(path, data) if is_prose(paragraph)]


def documents_of(paragraphs):
    """Of 400 to some 20,000 characters: a long file is several, so that a part of each can be held out."""
    document = []
    for paragraph in paragraphs:
        document.append(paragraph)
        if sum(map(len, document)) > 15_000:
            yield document
            document = []
    if sum(map(len, document)) >= 400:
        yield document


def collect_prose(options):
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    seen, total, sources = set(), 0, []
    with open(options.out, "w", encoding="utf-8") as out, concurrent.futures.ProcessPoolExecutor() as workers:
        for package in PROSE_PACKAGES:
            tree = folder / package
            archives = list(folder.glob(f"{package}_*.deb"))
            if not archives:
                subprocess.run(["apt-get", "download", "-q", package], cwd=folder, stdout=sys.stderr)
                archives = list(folder.glob(f"{package}_*.deb"))
            if not archives:
                print(f"corpus.py: {package} is not to be had; left out", file=sys.stderr)
                continue
            subprocess.run(["dpkg-deb", "-x", archives[0], tree], check=True)
            taken = 0
            paths = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink() and is_text(path)
                     and not path.name.startswith(("changelog", "copyright"))]
            for paragraphs in workers.map(prose_of, paths, chunksize=8):
                kept = []
                for paragraph in paragraphs:
                    digest = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
                    if digest not in seen:
                        seen.add(digest)
                        kept.append(paragraph)
                for document in documents_of(kept):
                    text = "\n".join(document)
                    # Half of them in the style of WikiText, so that neither style is strange to the model.
                    if hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1:
                        text = "\n".join(map(wikitext_style, document))
                    out.write(text + "\0")
                    taken += len(text)
            sources.append({"package": package, "version": archives[0].name.split("_")[1], "bytes": taken})
            total += taken
            print(f"{package}: {taken / 1e6:.1f} MB, all {total / 1e6:.1f} MB", file=sys.stderr)
    return sources


def python_root(package):
    if package == "stdlib":
        return pathlib.Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(list(spec.submodule_search_locations)[0])


def collect_python(options):
    seen, sources = set(), []
    with open(options.out, "w", encoding="utf-8") as out:
        for package in options.packages:
            root = python_root(package)
            if root is None:
                print(f"corpus.py: {package} is not installed; left out", file=sys.stderr)
                continue
            taken = 0
            for path in sorted(root.rglob("*.py")):
                inside = path.relative_to(root).parts
                if "site-packages" in inside or "dist-packages" in inside or path.is_symlink():
                    continue
                text = path.read_bytes().decode("utf-8", "ignore").replace("\0", "")
                lines = text.splitlines()
                digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
                # Tables and generated code teach nothing.
                if not 400 <= len(text) <= 300_000 or len(text) > 80 * len(lines) or digest in seen or sum(c.isdigit() for c in text) > 0.1 * len(text):
                    continue
                seen.add(digest)
                out.write(text + "\0")
                taken += len(text)
            try:
                version = importlib.metadata.version({"sklearn": "scikit-learn", "skimage": "scikit-image"}.get(package, package))
            except importlib.metadata.PackageNotFoundError:
                version = sys.version.split()[0]
            sources.append({"package": package, "version": version, "bytes": taken})
    return sources


def collect_wikitext(options):
    sources = []
    with open(options.out, "w", encoding="utf-8") as out:
        for name in options.files:
            path = pathlib.Path(name)
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
            for document in documents_of(text.splitlines(keepends=True)):
                out.write("".join(document) + "\0")
            sources.append({"file": path.name, "bytes": len(text)})
    return sources


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    prose = commands.add_parser("prose")
    prose.add_argument("folder")
    prose.add_argument("out")
    prose.set_defaults(run=collect_prose)
    python = commands.add_parser("python")
    python.add_argument("out")
    python.add_argument("packages", nargs="+")
    python.set_defaults(run=collect_python)
    wikitext = commands.add_parser("wikitext")
    wikitext.add_argument("out")
    wikitext.add_argument("files", nargs="+")
    wikitext.set_defaults(run=collect_wikitext)
    options = parser.parse_args()
    print(json.dumps(options.run(options), indent=1))


if __name__ == "__main__":
    main()
