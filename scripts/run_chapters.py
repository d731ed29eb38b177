"""Runs the book's chapters, as many at once as there are cores: the first half of ``make book``.

    python scripts/run_chapters.py book

Results go into ``book/_build/.jupyter_cache``, where the build finds them: ``book/_build/_config.yml``
is the book's configuration with the cache switched on. A chapter that fails is not cached: the
build runs it again, and stops with its error.
"""

import json
import sys
import time
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

TIMEOUT = 600  # seconds a cell, as in _config.yml


def main() -> None:
    book = Path(sys.argv[1])
    build = book / "_build"
    build.mkdir(exist_ok=True)
    cache = get_cache(build / ".jupyter_cache")
    for path in sorted(book.glob("*.ipynb")):
        cache.add_nb_to_project(str(path))
    start = time.perf_counter()
    load_executor("local-parallel", cache).run_and_cache(timeout=TIMEOUT)
    seconds = {Path(record.uri).stem: record.data["execution_seconds"] for record in cache.list_cache_records()}
    for name, value in sorted(seconds.items()):
        print(f"{value:6.1f} s  {name}")
    (build / "seconds.json").write_text(json.dumps({"all": time.perf_counter() - start, "chapters": seconds}))
    config = (book / "_config.yml").read_text()
    for old, new in (("execute_notebooks: force", "execute_notebooks: cache"), ("book_pages: _extensions", "book_pages: ../_extensions")):
        assert old in config  # paths in a configuration are those from its folder
        config = config.replace(old, new)
    (build / "_config.yml").write_text(config)


if __name__ == "__main__":  # the executor starts processes that read this file
    main()
