"""The slider over a sweep; what it does when it is moved, test_site.py tries in a browser."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sdap_lite.plots.slider import sweep_slider
from sdap_lite.records import recorded


def sweep(*rates: float) -> dict[str, Any]:
    row = {"test": 0.5, "params": 10, "macs": 20, "widths": {"conv": 2}, "confusion": [[1, 0], [0, 1]]}
    return {"card": {"classes": ["cat", "</script>"]}, "rows": [{"rate": rate, **row} for rate in rates]}


def test_the_figures_lie_in_the_page_and_cannot_end_its_script() -> None:
    page = str(sweep_slider(sweep(0, 0.5)).data)
    (data,) = re.findall(r'<script type="application/json" class="sdap-data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data) == sweep(0, 0.5)
    assert not re.findall(r'(?:src|href)="', page)
    assert "{{" not in page


@pytest.mark.parametrize("rates", [(), (0.5,), (0, 0.7, 0.5)])
def test_rates_rise_from_the_dense_network(rates: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rates must rise from 0, the dense network, got"):
        sweep_slider(sweep(*rates))


def test_the_recorded_sweep_is_whole() -> None:
    found = recorded("sweep")
    dense, *pruned = found["rows"]
    assert {"command", "commit", "data", "settings", "hardware", "versions"} <= found["card"].keys()
    for row in found["rows"]:
        images = sum(map(sum, row["confusion"]))
        right = sum(row["confusion"][i][i] for i in range(len(found["card"]["classes"])))
        assert row["test"] == pytest.approx(right / images)
        assert row["widths"].keys() == dense["widths"].keys()
    for row in pruned:
        removed = 1 - row["params"] / dense["params"]
        assert row["rate"] <= removed < row["rate"] + 0.01
        assert row["macs"] < dense["macs"]
        assert all(0 < kept <= dense["widths"][name] for name, kept in row["widths"].items())
    assert sweep_slider(found)
