"""Figures measured earlier: read as they were written, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdap_lite import records
from sdap_lite.checkpoint import sealed
from sdap_lite.records import recorded


def test_recorded_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records.resources, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"name must be one of \(nothing recorded\), got 'speed'"):
        recorded("speed")
    (tmp_path / "bundled/results").mkdir(parents=True)
    (tmp_path / "bundled/results/speed.json").write_text(json.dumps(sealed({"rows": [1, 2]})))
    assert recorded("speed") == {"rows": [1, 2]}
    for name in ("mass", "../../speed", "", "speed.json"):
        with pytest.raises(ValueError, match=f"name must be one of speed, got '{name}'"):
            recorded(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({**sealed({"rows": [1]}), "rows": [2]}), r"speed.json must be as it was written, but its checksum differs"),
        ("{", r"speed.json must be a record, but cannot be read as one"),
        ("3", r"speed.json must be a record, but cannot be read as one"),
        ("[" * 10**5, r"speed.json must be a record, but cannot be read as one"),
    ],
    ids=["changed", "cut off", "foreign", "deep"],
)
def test_damaged_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    monkeypatch.setattr(records.resources, "files", lambda _: tmp_path)
    (tmp_path / "bundled/results").mkdir(parents=True)
    (tmp_path / "bundled/results/speed.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        recorded("speed")
