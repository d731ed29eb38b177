"""What is built from a clean copy of the files, installed, and used from an empty folder: nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sdap_lite

ROOT = Path(__file__).parents[1]
USE = """
import sdap_lite as sdap
images = sdap.data.load("fashion-mini").limit(200, 100)
assert sdap.accuracy(sdap.models.vgg(pretrained="fashion-mini"), images) > 0.8
assert sdap.models.vgg(pretrained="cifar10")
assert sdap.records.recorded("headline")["rows"]
assert sdap.plots.image_grid(images)
from sdap_lite.plots.slider import sweep_slider
assert "sdap-rate" in sweep_slider(sdap.records.recorded("sweep")).data
print(sdap.__file__)
"""


def run(*command: object, cwd: Path, **variables: str) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source distribution."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git clone")
    folder = tmp_path_factory.mktemp("build")
    listed = run("git", "ls-files", "sdap_lite", "pyproject.toml", "README.md", "LICENSE", cwd=ROOT)
    for name in listed.splitlines():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    for kind in ("wheel", "sdist"):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
        run(sys.executable, "-W", "ignore", "-c", code, cwd=folder / "source")
    return folder


def test_the_wheel_works_from_an_empty_folder(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "installed", wheel, cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    used = run(sys.executable, "-W", "error", "-c", USE, cwd=tmp_path / "empty", PYTHONPATH=str(tmp_path / "installed"), OMP_NUM_THREADS="1")
    assert Path(used) == tmp_path / "installed/sdap_lite/__init__.py"


def test_wheel_and_source_hold_all_that_the_library_reads(built: Path) -> None:
    wanted = {f"sdap_lite/{path.relative_to(ROOT / 'sdap_lite')}" for path in (ROOT / "sdap_lite").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        assert wanted <= set(opened.namelist())
    with tarfile.open(source) as opened:
        assert wanted <= {name.partition("/")[2] for name in opened.getnames()}
    assert {path.name.split("-")[1].removesuffix(".tar.gz") for path in (wheel, source)} == {sdap_lite.__version__}
