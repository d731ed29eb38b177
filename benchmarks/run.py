"""Runs every benchmark in this folder, one after the other: ``make bench``."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__)
    failed = [script.name for script in sorted(here.parent.glob("*.py")) if script != here and subprocess.run([sys.executable, script]).returncode]
    sys.exit(f"missed its limit: {', '.join(failed)}" if failed else 0)
