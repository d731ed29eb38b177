"""Many prunings in one process leave nothing behind, and very deep and wide networks are traced. More of it: ``make fuzz``."""

from __future__ import annotations

import pytest
from load import sweep, traced


def test_prunings_leave_nothing_behind() -> None:
    found = sweep(4, warm_up=3)
    before, after = found["before"], found["after"]
    for key in ("threads", "tensors", "modules", "hooks", "files"):
        assert after.get(key) == before.get(key), key


@pytest.mark.parametrize(("layers", "width"), [(1000, 8), (75, 4000)], ids=["1,000 layers", "300,000 channels"])
def test_large_networks_are_traced(layers: int, width: int) -> None:
    assert traced(layers, width)["channels"] == layers * width + 10
