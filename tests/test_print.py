"""The whole book on one page, for a printer."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from by_path import load_file

PAGE = '<html><head><title>{0}</title></head><body><nav>menu</nav><article><h1 id="top-{0}">{0}</h1>{1}</article></body></html>'


@pytest.fixture
def page(tmp_path: Path) -> BeautifulSoup:
    """Three pages, listed in another order than by name."""
    links = '<a href="a.html">chapter</a> <a href="z.html#top-z">place</a> <a href="https://example.org/a.html">elsewhere</a>'
    for name, text in {"start": links, "a": "<p>first</p>", "z": "<p>second</p>"}.items():
        (tmp_path / f"{name}.html").write_text(PAGE.format(name, text))
    (tmp_path / "_toc.yml").write_text("root: start\nparts:\n- chapters:\n  - file: z\n- chapters:\n  - file: a\n")
    return BeautifulSoup(load_file("scripts/print_book.py").one_page(tmp_path, tmp_path / "_toc.yml"), "html.parser")


def test_pages_follow_the_contents_and_nothing_else_is_printed(page: BeautifulSoup) -> None:
    assert [heading.text for heading in page.find_all("h1")] == ["start", "z", "a"]
    assert page.find("nav") is None
    assert page.html["data-theme"] == "light"


def test_links_within_the_book_lead_to_places_on_the_page(page: BeautifulSoup) -> None:
    targets = [link["href"] for link in page.find_all("a")]
    assert targets == ["#page-a", "#top-z", "https://example.org/a.html"]
    assert all(page.find(id=target[1:]) for target in targets[:2])
