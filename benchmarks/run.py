"""Runs the benchmarks, each in a process of its own: ``make bench``, or ``make bench ONLY=name``.

Prints each one's rows, and writes them with all that they depend on to
``sdap_lite/bundled/results/benchmarks.json``, which the book draws. One that is run alone replaces
its own rows there. Ends with an error where a limit is missed.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sdap_lite as sdap
from sdap_lite import provenance
from sdap_lite.checkpoint import read_sealed, write_sealed

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "harness"))
RECORD = Path(sdap.__file__).parent / "bundled/results/benchmarks.json"


def processor() -> str:
    """The processor's name, where the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def graphics() -> str:
    """The GPU, where there is one."""
    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def versions(*names: str) -> dict[str, str]:
    """Of what is installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def card(name: str) -> dict[str, Any]:
    """All that the figures depend on."""
    return {
        "command": f"make bench ONLY={name}",
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "seed": 0,
        "hardware": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)" + graphics(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **versions("torch", "torchvision", "onnxruntime", "torch-pruning")},
    }


def run(name: str) -> dict[str, Any]:
    """One benchmark: its rows, when and how long it ran."""
    title = (HERE / f"{name}.py").read_text().splitlines()[0].strip('"')
    print(f"\n{name}: {title}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        subprocess.run([sys.executable, HERE / f"{name}.py", "--record", path])
        rows = json.loads(path.read_text()) if path.exists() else None
    return {"seconds": round(time.perf_counter() - start, 1), "rows": rows, "card": card(name)}


def main() -> None:
    names = sys.argv[1:] or NAMES
    if unknown := set(names) - set(NAMES):
        sys.exit(f"ONLY must be one of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    measured = {name: run(name) for name in names}
    found = read_sealed(RECORD) if RECORD.exists() else {}
    found = {name: found[name] for name in NAMES if name in found} | {name: content for name, content in measured.items() if content["rows"]}
    write_sealed(RECORD, {name: found[name] for name in sorted(found)})
    failed = [name for name, content in measured.items() if content["rows"] is None or any(row["missed"] for row in content["rows"])]
    sys.exit(f"\nmissed a limit, or stopped: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
