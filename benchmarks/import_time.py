"""How long ``import sdap_lite`` takes, held against ``import torch, torchvision``.

Each import is timed in a fresh process; the two take turns, and medians are compared.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from harness import Row, show

REPEATS = 11

# Beside a PyTorch that it was not built for, torchvision only imports with the library's help. The
# helper is loaded from its file, so that this side pays for nothing else of the library.
OURS = "import sdap_lite"
THEIRS = """
import torch
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("shim", sys.argv[1])
shim = module_from_spec(spec)
spec.loader.exec_module(shim)
shim.load()
"""
TIMED = "import sys, time\nstart = time.process_time()\n{}\nprint(time.process_time() - start)"


def seconds(statement: str, helper: Path) -> float:
    """The time of one import in a fresh process."""
    done = subprocess.run([sys.executable, "-c", TIMED.format(statement), helper], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure() -> list[Row]:
    spec = find_spec("sdap_lite")
    if spec is None or spec.origin is None:
        sys.exit("the library is not installed: run make bench")
    helper = Path(spec.origin).with_name("_torchvision.py")
    seconds(OURS, helper), seconds(THEIRS, helper)  # files come into the cache
    pairs = [(seconds(OURS, helper), seconds(THEIRS, helper)) for _ in range(REPEATS)]
    ours, theirs = (median(times) for times in zip(*pairs, strict=True))
    return [Row("import sdap_lite", "import torch, torchvision", ours / theirs, 1.15, {"ours": ours, "theirs": theirs})]


if __name__ == "__main__":
    show(measure)
