"""Brings the pages that lie outside of docs/ into the site, and links to the repository's other files into the text.

Pages are written to be read in the repository: README.md links to docs/x.md, docs/x.md to ../CONTRIBUTING.md. In the site they are
neighbours.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
           "models/README.md": "model.md"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files, config):
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    names = {name: source for source, name in OUTSIDE.items()}
    here = posixpath.dirname(names.get(page.file.src_uri, "docs/" + page.file.src_uri))

    def target(match):
        path, _, anchor = match.group(2).partition("#")
        if not path or re.match(r"^[a-z]+:", path):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(here, path))
        anchor = "#" + anchor if anchor else ""
        if path in OUTSIDE:
            return f"{match.group(1)}{OUTSIDE[path]}{anchor}{match.group(3)}"
        if path.startswith("docs/"):
            return f"{match.group(1)}{path.removeprefix('docs/')}{anchor}{match.group(3)}"
        if not (ROOT / path).exists():
            return match.group(0)  # a dead link: MkDocs complains of it
        return "]\x00"  # a file of the repository that is no page: its text stays, the link goes

    text = LINK.sub(target, markdown)
    return re.sub(r"\[([^\]]*)\]\x00", r"\1", text)
