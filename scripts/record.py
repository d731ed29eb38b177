"""Measures what the book and the README quote: a table of prunings, all at an equal budget.

    python scripts/record.py gate_rules
    python scripts/record.py headline

writes ``sdap_lite/bundled/results/NAME.json``: a card with all that the figures depend on, and a
row for each pruning. Rows that the file has already are not run again, so a killed command goes
on where it was.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import sdap_lite as sdap
from sdap_lite.checkpoint import sealed, write_atomically

RESULTS = Path(sdap.__file__).parent / "bundled" / "results"

# How gates may be trained: chapters 2, 3 and 5
RULES = [
    {"rule": rule, "cost_power": power, "alpha": alpha}
    for rule, power, alpha in [
        ("frozen", 0.0, 0.9),
        ("frozen", 0.5, 0.9),
        ("straight-through", 0.0, 0.9),
        ("straight-through", 0.5, 0.9),
        ("rms", 0.0, 0.9),
        ("rms", 0.5, 0.9),
        ("rms", 1.0, 0.9),
        ("rms", 0.5, 0.0),
    ]
]
# name -> the set, how many training images (None: all), what is the same for all rows, what differs
RECIPES: dict[str, tuple[str, int | None, dict[str, Any], list[dict[str, Any]]]] = {
    "gate_rules": ("cifar10", 15_000, {"net": "vgg", "epochs": 3}, [{"rate": rate, **arm} for rate in (0.75, 0.9) for arm in RULES]),
    "headline": ("cifar10", None, {"rate": 0.75}, [{"net": "vgg", "epochs": 40}, {"net": "resnet20", "epochs": 10}]),
}


def card(name: str, images: sdap.Images, full: sdap.Images, common: dict[str, Any], nets: list[str]) -> dict[str, Any]:
    """All that the figures depend on."""
    models = {net: getattr(sdap.models, net)(pretrained=full.name) for net in nets}
    held_out, training = (f"{len(part):,}" for part in images.hold_out())
    return {
        "command": f"python scripts/record.py {name}",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip(),
        "data": f"{full.note}: {training} training images, {held_out} others for validation, all {len(full.test):,} test images",
        "settings": common,
        "dense test": {net: sdap.accuracy(model, full) for net, model in models.items()},
        "parameters": {net: sdap.count_params(model) for net, model in models.items()},
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sdap_lite": sdap.__version__},
    }


def measure(images: sdap.Images, settings: dict[str, Any]) -> dict[str, Any]:
    """One pruning; its row without the settings."""
    settings = dict(settings)
    model = getattr(sdap.models, settings.pop("net"))(pretrained=images.name)
    start = time.time()
    result = sdap.prune(model, images, mode="bf16-channels-last", progress=False, **settings)
    assert result.report is not None
    return {
        "test": result.test,
        "validation": result.history[-1]["validation"],
        "achieved": result.report.achieved(),
        "macs removed": result.report.achieved("macs"),
        "widths": {name: kept for name, (kept, _) in result.report.widths.items()},
        "seconds": round(time.time() - start, 1),
        "history": [{k: round(v, 4) for k, v in record.items()} for record in result.history],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data, count, common, arms = RECIPES[args.name]
    path = RESULTS / f"{args.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    full = sdap.data.load(data)
    images = full if count is None else full.limit(count, len(full.test))
    about = card(args.name, images, full, common, sorted({arm.get("net", common.get("net")) for arm in arms}))
    for seed, arm in itertools.product(range(args.seeds), arms):
        settings = {**common, **arm, "seed": seed}
        if any(all(row[k] == v for k, v in settings.items()) for row in rows):
            continue
        rows.append({**settings, **measure(images, settings)})
        print({k: v for k, v in rows[-1].items() if k not in ("widths", "history")}, flush=True)
        text = json.dumps(sealed({"card": about, "rows": rows}), indent=1) + "\n"
        write_atomically(path, lambda file, text=text: Path(file).write_text(text))


if __name__ == "__main__":
    sys.exit(main())
