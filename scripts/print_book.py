"""The built book as one PDF: its pages in the order of the contents, printed by Chromium.

python scripts/print_book.py book/_build/html book/_build/book.pdf        (or: make print)
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from bs4 import BeautifulSoup

STYLE = "article { break-after: page; } article pre { white-space: pre-wrap; } .animation .anim-controls, .copybtn, .headerlink { display: none !important; }"


def one_page(built: Path, contents: Path) -> str:
    """All pages' articles within the first page's frame; a link to another page leads to its place in the one.

    Args:
        built: the folder of the built pages.
        contents: ``_toc.yml``.
    """
    toc = yaml.safe_load(contents.read_text(encoding="utf-8"))
    names = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    pages = {name: BeautifulSoup((built / f"{name}.html").read_text(encoding="utf-8"), "html.parser") for name in names}
    whole = pages[toc["root"]]
    articles = [pages[name].find("article") for name in names]
    for name, article in zip(names, articles, strict=True):
        article["id"] = f"page-{name}"
        for link in article.find_all("a", href=True):
            page, _, place = link["href"].partition("#")
            if page.removesuffix(".html") in pages:
                link["href"] = f"#{place or 'page-' + page.removesuffix('.html')}"
    whole.body.clear()
    whole.body.extend(articles)
    whole.head.append(whole.new_tag("style", string=STYLE))
    whole.html["data-theme"] = whole.html["data-mode"] = "light"
    return str(whole)


def main(built: Path, pdf: Path) -> None:
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("printing needs Chromium (on Debian: apt install chromium)")
    page = built / "print.html"
    page.write_text(one_page(built, built.parents[1] / "_toc.yml"), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:  # time for MathJax, which sets the formulas in the page
        wait = ("--virtual-time-budget=60000", "--no-pdf-header-footer", f"--user-data-dir={profile}")
        subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", *wait, f"--print-to-pdf={pdf}", page.resolve().as_uri()], check=True)
    page.unlink()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
