"""Sets the repository's address in every file that names it.

    python scripts/set_repository.py OWNER/NAME        (or: make repository NAME=OWNER/NAME)

pyproject.toml says what the address was. The pages' address follows from it: https://OWNER.github.io/NAME/.
"""

import re
import subprocess
import sys
from pathlib import Path

BINARY = {".png", ".npz", ".safetensors", ".ico"}


def set_repository(root: Path, address: str) -> list[Path]:
    """Replaces the address in all files that git knows, or would take up; returns those that changed.

    Args:
        root: the clone.
        address: ``OWNER/NAME`` on GitHub.

    Raises:
        ValueError: it is no such address.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[\w.-]+", address):
        raise ValueError(f"the address must be OWNER/NAME, got {address!r}")
    found = re.search(r'^Repository = "https://github\.com/([^/"]+)/([^/"]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError("pyproject.toml must name the address that is to be replaced, under [project.urls]")
    (old_owner, old_name), (owner, name) = found.groups(), address.split("/")
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True)
    changed = []
    for path in (root / file for file in listed.stdout.split("\0") if file):
        if path.suffix in BINARY or path.is_symlink() or not path.is_file():
            continue
        before = path.read_text(encoding="utf-8")
        after = re.sub(rf"((?:github\.com|google\.com/github)/){old_owner}/{old_name}\b", rf"\g<1>{owner}/{name}", before)
        after = after.replace(f"{old_owner}.github.io/{old_name}/", f"{owner}.github.io/{name}/")
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for file in set_repository(Path(__file__).parents[1], sys.argv[1]):
        print(file.name)
