"""What the book's pages need beyond Sphinx's own: chapters named in docstrings become links, and
pages ask no other host for anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

BADGE = "https://colab.research.google.com/assets/"


def link_chapters(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """'Chapter 3' in a docstring links to that chapter; 'Chapters 1 and 3' to both."""
    pages = {int(path.name[:2]): path.stem for path in sorted(Path(app.srcdir).glob("[0-9][0-9]_*.ipynb"))}

    def link(found: re.Match[str]) -> str:
        word, numbers = found.groups()
        first = True

        def one(number: re.Match[str]) -> str:
            nonlocal first
            text, first = (f"{word} {number[0]}" if first else number[0]), False
            page = pages.get(int(number[0]))
            return f":doc:`{text} <{page}>`" if page else text

        return re.sub(r"\d+", one, numbers)

    lines[:] = [re.sub(r"\b([Cc]hapters?) (\d+(?:(?:, | and | to )\d+)*)", link, line) for line in lines]


def keep_to_this_host(app: Sphinx, doctree: nodes.document) -> None:
    """Colab's badge is a picture on Colab's host; in the book the same link is plain text."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].startswith(BADGE):
            image.replace_self(nodes.inline("", image["alt"], classes=["colab"]))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", link_chapters)
    app.connect("doctree-read", keep_to_this_host)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
