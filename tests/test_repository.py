"""One command sets the repository's address everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from by_path import load_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def set_repository() -> Callable[[Path, str], list[Path]]:
    return load_file("scripts/set_repository.py").set_repository


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the files in which the address stands."""
    for name in ("pyproject.toml", "README.md", "CITATION.cff", "book/_config.yml", "book/01_too_many_channels.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def contents(clone: Path) -> dict[str, str]:
    return {str(path.relative_to(clone)): path.read_text() for path in clone.rglob("*.*") if path.is_file() and ".git" not in path.parts}


def test_the_address_changes_everywhere_and_back(clone: Path, set_repository: Callable[[Path, str], list[Path]]) -> None:
    before = contents(clone)
    owner, name = re.findall(r"Repository = \"https://github.com/(.*)/(.*)\"", before["pyproject.toml"])[0]
    changed = set_repository(clone, "Some-One/my.book")
    after = contents(clone)
    assert {str(path.relative_to(clone)) for path in changed} == set(before)
    for file, text in after.items():
        assert f"{owner}/{name}" not in text.replace(f"{owner}.github.io", ""), file
        assert f"{owner}.github.io" not in text, file
    assert "https://Some-One.github.io/my.book/" in after["book/_config.yml"]
    assert "colab.research.google.com/github/Some-One/my.book/blob/main/book/01" in after["README.md"]
    assert "git+https://github.com/Some-One/my.book" in after["book/01_too_many_channels.ipynb"]
    set_repository(clone, f"{owner}/{name}")
    assert contents(clone) == before


@pytest.mark.parametrize("address", ["name", "a/b/c", "https://github.com/a/b", "a b/c", ""])
def test_an_address_is_owner_and_name(clone: Path, set_repository: Callable[[Path, str], list[Path]], address: str) -> None:
    before = contents(clone)
    with pytest.raises(ValueError, match="the address must be OWNER/NAME, got"):
        set_repository(clone, address)
    assert contents(clone) == before


def test_what_is_replaced_must_be_known(clone: Path, set_repository: Callable[[Path, str], list[Path]]) -> None:
    (clone / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(ValueError, match=r"pyproject.toml must name the address that is to be replaced"):
        set_repository(clone, "a/b")


def test_without_an_address_the_command_says_how() -> None:
    found = subprocess.run([sys.executable, ROOT / "scripts/set_repository.py"], capture_output=True, text=True)
    assert found.returncode == 1
    assert "OWNER/NAME" in found.stderr
