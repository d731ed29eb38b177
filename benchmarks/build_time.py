"""How long ``make book`` and ``make test`` took when they last ran here, held against what a reader should have to wait.

Read from what they leave behind: running them inside a benchmark would take longer than all others
together. What has not run is not in the table.
"""

import json
from pathlib import Path
from xml.etree import ElementTree

from harness import Row, show

ROOT = Path(__file__).parents[1]


def book() -> list[Row]:
    """The chapters all together, and the slowest one."""
    path = ROOT / "book/_build/seconds.json"
    if not path.exists():
        return []
    seconds = json.loads(path.read_text())
    name, slowest = max(seconds["chapters"].items(), key=lambda item: item[1])
    return [
        Row("all chapters of make book", "12 minutes", seconds["all"] / 720, 1.0, {"took": seconds["all"]}),
        Row(f"the slowest chapter, {name}", "90 seconds", slowest / 90, 1.0, {"took": slowest}),
    ]


def tests() -> list[Row]:
    """The tests of the library and of the chapters, both together."""
    paths = [ROOT / ".pytest_cache" / f"{part}.xml" for part in ("library", "chapters")]
    if not all(path.exists() for path in paths):
        return []
    seconds = sum(float(suite.get("time", 0)) for path in paths for suite in ElementTree.parse(path).iter("testsuite"))
    return [Row("make test", "15 minutes", seconds / 900, 1.0, {"took": seconds})]


if __name__ == "__main__":
    show(lambda: book() + tests())
