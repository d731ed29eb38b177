"""What the book's pages need beyond Sphinx's own: chapters named in docstrings become links, figures
get the alternative text that they bring along, and pages load nothing from another host or in vain."""

from __future__ import annotations

import binascii
import hashlib
import html
import json
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
    """Colab's badge is a picture on Colab's host; in the book the same link is text, and no part of what the page is said to be about."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].startswith(BADGE):
            image.replace_self(nodes.raw("", html.escape(image["alt"]), format="html"))


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Figures' alternative texts: a notebook's outputs carry them, but myst-nb does not hand them on.

    It names a picture's file by the hash of its bytes, and by that the output is found again.
    """
    executed = Path(app.env.mystnb_config.output_folder, f"{app.env.docname}.ipynb")
    if not executed.is_file():
        return
    texts = {}
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                name = hashlib.sha256(binascii.a2b_base64("".join(output["data"]["image/png"]))).hexdigest()
                texts[name] = output["metadata"].get("image/png", {}).get("alt")
    for image in doctree.findall(nodes.image):
        if text := texts.get(Path(image["uri"]).stem):
            image["alt"] = text


def leave_thebe_out(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Jupyter Book adds scripts for live code to every page, one of them twice, which is an error; the book has no live code."""
    context["script_files"] = [file for file in context["script_files"] if "thebe" not in f"{file.filename} {file.attributes.get('body')}"]


def name_entries(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Docutils gives a bibliography's entries a role that ARIA has given up, so that screen readers find a list without items."""
    context["body"] = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", link_chapters)
    app.connect("doctree-read", keep_to_this_host)
    app.connect("doctree-read", describe_figures)
    app.connect("html-page-context", leave_thebe_out, priority=900)
    app.connect("html-page-context", name_entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
