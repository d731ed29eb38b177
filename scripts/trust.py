"""Tries for a night what the tests try for a minute, and counts: ``make fuzz``.

    python scripts/trust.py

kills a hundred runs, draws thousands of random networks and damaged files, prunes 200 times in one
process, traces a very deep and a very wide network, and runs ten chapters at once. What it counted
goes to ``sdap_lite/bundled/results/trust.json``, which the book's page on promises quotes; it fails
where a promise was broken. A step that is named is run alone, and the other counts stay.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sdap_lite
from sdap_lite import provenance
from sdap_lite.checkpoint import write_sealed

ROOT = Path(sdap_lite.__file__).parents[1]
RECORD = ROOT / "sdap_lite/bundled/results/trust.json"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SDAP_SCALE": "tiny", "PYTHONPATH": str(ROOT)}
LIMITS = {"trace": 30, "threshold": 10, "MiB": 64}  # CPU seconds; growth over the sweep


def python(*arguments: str, folder: str = "tests", **environment: str) -> str:
    """Runs Python in a folder of the repository; what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT / folder, env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(arguments)}")
    return done.stdout


def kills() -> dict[str, Any]:
    counts = json.loads(python("kills.py", "--kills", "100", "--seed", "0"))
    assert counts["wrong results"] == counts["checkpoints lost"] == 0, counts
    return counts


def inputs() -> dict[str, Any]:
    said = {name: python("-m", "pytest", "-q", f"test_{name}.py") for name in ("bad_input", "faults", "archives", "checkpoint")}
    return {name: int(re.findall(r"(\d+) passed", text)[0]) for name, text in said.items()}


def fuzz(only: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        python("-m", "pytest", "-q", "test_fuzz.py", "-k", only, "--hypothesis-profile", "nightly", SDAP_COUNTS=f"{folder}/counts.json")
        counts = json.loads(Path(folder, "counts.json").read_text())
    return {"examples": sum(sum(found.values()) for found in counts.values()), "wrong results": 0, "of which": counts}


def files() -> dict[str, Any]:
    return fuzz("damaged or foreign")


def networks() -> dict[str, Any]:
    return fuzz("prune")


def load() -> dict[str, Any]:
    counts = json.loads(python("load.py", "--prunings", "200", ONEDNN_PRIMITIVE_CACHE_CAPACITY="0"))  # it keeps kernels for each new shape
    before, after = counts["sweep"]["before"], counts["sweep"]["after"]
    assert all(after[key] == before[key] for key in before if key != "MiB"), counts
    assert after.get("MiB", 0) - before.get("MiB", 0) <= LIMITS["MiB"], counts
    for key in ("trace", "threshold"):
        assert all(counts[net][f"{key}, CPU seconds"] <= LIMITS[key] for net in ("deep", "wide")), counts
    return {**counts, "limits": LIMITS}


def notebooks() -> dict[str, Any]:
    """Ten chapters at once, on two cores where the system can say so."""
    there = sorted(path.name for path in (ROOT / "book").glob("*.ipynb"))
    ten = [there[i % len(there)] for i in range(10)]
    cores = ["taskset", "-c", "0,1"] if platform.system() == "Linux" else []
    command = [*cores, sys.executable, "-m", "pytest", "-q", "-W", "default", "--nbmake", "--nbmake-timeout=1800", "-p", "no:cacheprovider"]
    running = [subprocess.Popen([*command, name], cwd=ROOT / "book", env=ENVIRONMENT, stdout=subprocess.DEVNULL) for name in ten]
    failed = [name for name, process in zip(ten, running, strict=True) if process.wait()]
    assert not failed, failed
    return {"at once": len(ten), "failed": 0}


STEPS: dict[str, Callable[[], dict[str, Any]]] = {"kills": kills, "inputs": inputs, "load": load, "notebooks": notebooks, "files": files, "networks": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"some of {', '.join(STEPS)}; default: all")
    parser.add_argument("--examples", type=int, default=2000, help="networks, and damages to each kind of file (default: %(default)s)")
    args = parser.parse_args()
    steps = args.steps or list(STEPS)
    ENVIRONMENT["SDAP_EXAMPLES"] = str(args.examples)
    if unknown := set(steps) - STEPS.keys():
        parser.error(f"a step must be one of {', '.join(STEPS)}, got {', '.join(sorted(unknown))}")
    counts = sdap_lite.records.recorded("trust") if RECORD.exists() else {}
    for step in steps:
        start = time.time()
        counts[step] = STEPS[step]()
        counts[step]["card"] = {
            "command": f"python scripts/trust.py {step}" + (f" --examples {args.examples}" if step in ("files", "networks") else ""),
            "commit": provenance.commit(),
            "seconds": round(time.time() - start),
            "hardware": f"{platform.system()}, {platform.machine()} CPU, 1 thread",
            "versions": provenance.versions(),
        }
        print(f"{step}: {counts[step]}", flush=True)
        write_sealed(RECORD, counts)


if __name__ == "__main__":
    main()
