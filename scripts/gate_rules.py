"""Compares how gates may be trained, at an equal budget: same net, data, epochs and code.

    python scripts/gate_rules.py vgg cifar10 --seeds 3

writes ``sdap_lite/bundled/results/gate_rules.json``, which chapters 2, 3 and 5 draw. Runs that the
file has already are not run again, so a killed command goes on where it was.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import sdap_lite as sdap
from sdap_lite.checkpoint import write_atomically

IMAGES, EPOCHS = 20_000, 3
# rule, cost power, alpha
ARMS = [
    ("frozen", 0.0, 0.9),
    ("frozen", 0.5, 0.9),
    ("straight-through", 0.0, 0.9),
    ("straight-through", 0.5, 0.9),
    ("rms", 0.0, 0.9),
    ("rms", 0.5, 0.9),
    ("rms", 1.0, 0.9),
    ("rms", 0.5, 0.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net")
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="gate_rules")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = Path(sdap.__file__).parent / "bundled" / "results" / f"{args.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []

    full = sdap.data.load(args.data)
    images = full.limit(IMAGES, len(full.test))
    model = getattr(sdap.models, args.net)(pretrained=args.data)
    card = {
        "command": " ".join(["python", "scripts/gate_rules.py", *sys.argv[1:]]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip(),
        "net": args.net,
        "data": f"{full.note}, {IMAGES:,} training images, {IMAGES // 10:,} others for validation, all test images",
        "epochs": EPOCHS,
        "dense test": sdap.accuracy(model, full),
        "parameters": sdap.count_params(model),
        "hardware": f"{platform.machine()} CPU, {args.threads} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sdap_lite": sdap.__version__},
    }
    for seed, rate, (rule, power, alpha) in itertools.product(range(args.seeds), (0.75, 0.9), ARMS):
        key = {"rule": rule, "cost_power": power, "alpha": alpha, "rate": rate, "seed": seed}
        if any(all(row[k] == v for k, v in key.items()) for row in rows):
            continue
        start = time.time()
        result = sdap.prune(model, images, rate, epochs=EPOCHS, rule=rule, cost_power=power, alpha=alpha, seed=seed, mode="bf16-channels-last", progress=False)
        widths = {name: kept for name, (kept, _) in result.report.widths.items()}
        row = {**key, "test": result.test, "validation": result.history[-1]["validation"], "achieved": result.report.achieved(), "widths": widths}
        rows.append({**row, "macs removed": result.report.achieved("macs"), "seconds": round(time.time() - start, 1)})
        print({k: v for k, v in rows[-1].items() if k != "widths"}, min(widths.values()), flush=True)
        text = json.dumps({"card": card, "rows": rows}, indent=1) + "\n"
        write_atomically(path, lambda file, text=text: Path(file).write_text(text))


if __name__ == "__main__":
    main()
