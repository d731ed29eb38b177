"""Measures the sweep that the book's page to play with shows: one network at many rates.

    python scripts/sweep.py

writes ``sdap_lite/bundled/results/sweep.json``: a card with all that the figures depend on, and a row for each rate, from 0
(the dense network) on. Rows that the file has already are not run again, so a killed command goes on where it was.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sdap_lite as sdap
from sdap_lite import provenance
from sdap_lite.checkpoint import read_sealed, write_sealed
from sdap_lite.measure import predict

PATH = Path(sdap.__file__).parent / "bundled" / "results" / "sweep.json"
RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TRAINING = 15_000
SETTINGS = {"epochs": 3, "rule": "rms", "hold": 0.0, "alpha": 0.9, "seed": 0}


def card(full: sdap.Images, images: sdap.Images) -> dict[str, Any]:
    """All that the figures depend on."""
    held_out, training = (f"{len(part):,}" for part in images.hold_out())
    return {
        "command": "python scripts/sweep.py",
        "commit": provenance.commit(),
        "data": f"{full.note}: {training} training images, {held_out} others for validation, all {len(full.test):,} test images",
        "classes": list(full.classes),
        "net": "vgg",
        "settings": SETTINGS,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


def confusion(model: nn.Module, images: sdap.Images) -> list[list[int]]:
    """How many test images of each class (row) got each answer (column)."""
    answers, labels, n = predict(model, images.test, images).argmax(1), images.test.labels, len(images.classes)
    return torch.bincount(labels * n + answers, minlength=n * n).view(n, n).tolist()


def row(rate: float, model: nn.Module, images: sdap.Images, widths: dict[str, int]) -> dict[str, Any]:
    """What the page shows of one network."""
    table = confusion(model, images)
    example = torch.zeros(1, *images.train.images.shape[1:], device=next(model.parameters()).device)
    return {
        "rate": rate,
        "test": sum(table[i][i] for i in range(len(table))) / len(images.test),
        "params": sdap.count_params(model),
        "macs": sdap.count_macs(model, example),
        "widths": widths,
        "confusion": table,
    }


def main() -> None:
    torch.set_num_threads(1)
    full = sdap.data.load("cifar10")
    images = full.limit(TRAINING, len(full.test))
    model = sdap.models.vgg(pretrained=full.name).eval()
    graph = sdap.trace(model, torch.zeros(1, *full.train.images.shape[1:]))
    rows = read_sealed(PATH)["rows"] if PATH.exists() else [row(0.0, model, full, {name: len(group) for name, group in graph.prunable.items()})]
    about = card(full, images)
    for rate in RATES:
        if any(found["rate"] == rate for found in rows):
            continue
        start = time.perf_counter()
        result = sdap.prune(model, images, rate, mode="bf16-channels-last", progress=False, **SETTINGS)
        rows.append(row(rate, result.model, full, {name: int(kept.sum()) for name, kept in result.kept.items()}))
        print(f"rate {rate:.2f}: test {rows[-1]['test']:.2%}, {rows[-1]['params']:,} parameters, {time.perf_counter() - start:.0f} s", flush=True)
        write_sealed(PATH, {"card": about, "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
