"""What the benchmarks share: turns, medians and limits. What they measure is no test's business."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import sdap_lite

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("run", "harness"))


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("harness", FOLDER / "harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "harness", module)  # a dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ratio", "limit", "at_least", "missed"),
    [(1.1, 1.05, False, True), (1.05, 1.05, False, False), (9.0, 10.0, True, True), (10.0, 10.0, True, False), (7.0, None, False, False)],
)
def test_a_limit_is_missed_on_its_wrong_side(harness: Any, ratio: float, limit: float | None, at_least: bool, missed: bool) -> None:
    row = harness.Row("this", "that", ratio, limit, {"this": ratio}, at_least=at_least)
    assert row.missed == missed
    assert ("MISSED" in str(row)) == missed


def test_tasks_take_turns_and_the_median_counts(harness: Any) -> None:
    clock, order = [0.0], []
    times = {"a": iter([50, 1, 9, 2]), "b": iter([70, 4, 6, 5])}

    def task(name: str) -> None:
        order.append(name)
        clock[0] += next(times[name])

    found = harness.take_turns({n: lambda n=n: task(n) for n in times}, repeats=3, warmup=1, clock=lambda: clock[0])
    assert order == ["a", "b"] * 4
    assert found == {"a": 2, "b": 5}, "the first turn warms up"


def test_a_script_that_stops_says_why(harness: Any) -> None:
    with pytest.raises(RuntimeError, match=r"run.py nothing must print its figures, but stopped with 1: .*ONLY must be one of .*, got nothing"):
        harness.fresh("run.py", "nothing")


@pytest.mark.parametrize("name", list(sdap_lite.records.recorded("benchmarks")))
def test_record_holds_what_its_benchmark_prints(name: str) -> None:
    content = sdap_lite.records.recorded("benchmarks")[name]
    assert name in NAMES
    assert {"command", "commit", "seed", "hardware", "versions"} <= content["card"].keys()
    for row in content["rows"]:
        limit, ratio = row["limit"], row["ratio"]
        assert row["missed"] == (limit is not None and (ratio < limit if row["at_least"] else ratio > limit))
