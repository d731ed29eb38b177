"""Downloads that break, stall or lie, and archives that want out of their folder: nothing is left, nothing gets in."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import write_cifar10, write_cifar100, write_downsampled

from sdap_lite import DatasetUnavailable
from sdap_lite.data import load
from sdap_lite.image_files import archives

PATTERN = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()  # does not compress: half a download is half a file


def pack(folder: Path, archive: Path) -> bytes:
    """The folder's content as a ``.tar.gz``."""
    with tarfile.open(archive, "w:gz") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)
    return archive.read_bytes()


@pytest.fixture
def cifar(tmp_path: Path) -> bytes:
    """An archive as that of CIFAR-10's authors, with 24 images."""
    write_cifar10(tmp_path / "made")
    (tmp_path / "made/cifar-10-batches-py/padding").write_bytes(PATTERN)
    return pack(tmp_path / "made", tmp_path / "made.tar.gz")


@contextmanager
def serving(content: bytes, *, stop_at: int | None = None, stall: bool = False, status: int = 200) -> Iterator[str]:
    """A server on this machine that hands out ``content``: all of it, or a part and then silence or the end."""
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:stop_at])
            self.wfile.flush()
            if stall:
                gone.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            gone.set()
            server.shutdown()
            thread.join()


def published(monkeypatch: pytest.MonkeyPatch, address: str, content: bytes, name: str = "cifar10") -> None:
    """Says that the authors keep ``content`` at the address."""
    file = archives.ARCHIVES[name][0].rpartition("/")[2]
    monkeypatch.setitem(archives.ARCHIVES, name, (f"{address}/{file}", hashlib.sha256(content).hexdigest()))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Downloads


def test_download_is_unpacked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    with serving(cifar) as address:
        published(monkeypatch, address, cifar)
        assert len(load("cifar10", tmp_path / "root").train) == 20
    assert names(tmp_path / "root") == ["cifar-10-batches-py"]
    assert len(load("cifar10", tmp_path / "root").train) == 20, "without the server"


@pytest.mark.parametrize("name", ["cifar100", "imagenette"])
def test_the_other_sets_are_downloaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "cifar100":
        write_cifar100(tmp_path / "made")
    else:
        for part in ("train", "val"):
            (tmp_path / "made/imagenette2-160" / part / "n01440764").mkdir(parents=True)
            Image.new("RGB", (160, 160)).save(tmp_path / "made/imagenette2-160" / part / "n01440764/0.JPEG")
    content = pack(tmp_path / "made", tmp_path / "made.tar.gz")
    with serving(content) as address:
        published(monkeypatch, address, content, name)
        assert len(load(name, tmp_path / "root").train) == (8 if name == "cifar100" else 1)


def test_set_that_was_just_downloaded_has_the_pixels_of_later_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, root: Path) -> None:
        for part in ("train", "val"):
            (root / "imagenette2-160" / part / "n01440764").mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 256, (160, 213, 3), np.uint8)
            Image.fromarray(pixels).save(root / "imagenette2-160" / part / "n01440764/0.png")

    monkeypatch.setattr(archives, "install", install)
    first, later = (load("imagenette", tmp_path / "root", size=64) for _ in range(2))
    assert torch.equal(first.train.images, later.train.images)
    assert torch.equal(first.test.images, later.test.images)


def test_archive_without_a_tree_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "install", lambda name, root: None)
    with pytest.raises(DatasetUnavailable, match=r"imagenette is not in .*root: no folder with train/<class>/\* and test"):
        load("imagenette", tmp_path / "root")


@pytest.mark.parametrize("stop_at", [0, 1000, 150_000, -1])
def test_download_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes, stop_at: int) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mine").write_text("stays")
    with serving(cifar, stop_at=stop_at) as address:
        published(monkeypatch, address, cifar)
        with pytest.raises(DatasetUnavailable, match=r"cifar10 is not in .*root: the download failed: .*\nThree ways out"):
            load("cifar10", tmp_path / "root")
    assert names(tmp_path / "root") == ["mine"]
    with serving(cifar) as address:
        published(monkeypatch, address, cifar)
        assert len(load("cifar10", tmp_path / "root").train) == 20, "the next call begins anew"


def test_download_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    monkeypatch.setattr(archives, "PATIENCE", 0.3)
    with serving(cifar, stop_at=1000, stall=True) as address:
        published(monkeypatch, address, cifar)
        with pytest.raises(DatasetUnavailable, match=r"the download failed: .*timed out"):
            load("cifar10", tmp_path / "root")
    assert names(tmp_path / "root") == []
    assert socket.getdefaulttimeout() is None, "as it was before"


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:  # a port at which nobody listens
        nobody.bind(("127.0.0.1", 0))
        published(monkeypatch, f"http://127.0.0.1:{nobody.getsockname()[1]}", b"")
        with pytest.raises(DatasetUnavailable, match=r"the download failed: <urlopen error .*refused"):
            load("cifar10", tmp_path / "root")
    assert names(tmp_path / "root") == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_server_that_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with serving(b"no", status=status) as address:
        published(monkeypatch, address, b"no")
        with pytest.raises(DatasetUnavailable, match=rf"the download failed: HTTP Error {status}"):
            load("cifar10", tmp_path / "root")


def test_download_of_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    with serving(cifar[:-1] + b"!") as address:
        published(monkeypatch, address, cifar)
        with pytest.raises(DatasetUnavailable, match=r"must have the SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}: it was damaged or exchanged"):
            load("cifar10", tmp_path / "root")
    assert names(tmp_path / "root") == []


def test_archive_that_lies_there_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    """Who has carried the archive to a machine without a network need not unpack it."""
    published(monkeypatch, "http://127.0.0.1:9", cifar)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cifar-10-python.tar.gz").write_bytes(cifar)
    assert len(load("cifar10", tmp_path / "root").train) == 20
    assert names(tmp_path / "root") == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_folder_that_another_process_was_faster_to_fill_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    """Between this process's look and its move."""
    published(monkeypatch, "http://127.0.0.1:9", cifar)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cifar-10-python.tar.gz").write_bytes(cifar)
    move = Path.replace

    def late(self: Path, target: Path) -> Path:
        shutil.copytree(self, target)
        return move(self, target)

    monkeypatch.setattr(Path, "replace", late)
    assert len(load("cifar10", tmp_path / "root").train) == 20
    assert names(tmp_path / "root") == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_folder_that_cannot_be_moved_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    published(monkeypatch, "http://127.0.0.1:9", cifar)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar)

    def fails(self: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(DatasetUnavailable, match=r"the download failed: .*Permission denied"):
        load("cifar10", tmp_path)


def test_damaged_archive_that_lies_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    published(monkeypatch, "http://127.0.0.1:9", cifar)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cifar-10-python.tar.gz").write_bytes(cifar[:1000])
    with pytest.raises(DatasetUnavailable, match=r"root.cifar-10-python.tar.gz must have the SHA-256"):
        load("cifar10", tmp_path / "root")
    assert names(tmp_path / "root") == ["cifar-10-python.tar.gz"]


def test_what_a_killed_download_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    published(monkeypatch, "http://127.0.0.1:9", cifar)
    for name in (".download-old", ".download-live"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".download-old", (0, time.time() - 2 * archives.DAY))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar)
    load("cifar10", tmp_path)
    assert not (tmp_path / ".download-old").exists()
    assert (tmp_path / ".download-live").exists(), "of another process, perhaps"


def test_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetUnavailable, match=r"the download failed: \[Errno \d+\].*\nThree ways out"):
        load("cifar10", tmp_path / "file/root")


def test_the_authors_archives_are_fetched_safely() -> None:
    for address, sha256 in archives.ARCHIVES.values():
        assert address.startswith("https://")
        assert len(bytes.fromhex(sha256)) == 32


def test_file_that_was_damaged_since_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: bytes) -> None:
    published(monkeypatch, "http://127.0.0.1:9", cifar)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar)
    load("cifar10", tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1  # a pixel
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2 must be a batch of images, .*: its checksum is not that of SHA256SUMS, so it was damaged or exchanged"):
        load("cifar10", tmp_path)
    path.with_name("SHA256SUMS").unlink()
    load("cifar10", tmp_path)


# Archives


def member(name: str, **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def write_tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (member("../evil"), r"hostile.tgz must unpack inside its folder, but holds '../evil'"),
        (member("a/../../evil"), r"must unpack inside its folder, but holds 'a/../../evil'"),
        (member("/evil"), "must unpack inside its folder, but holds '/evil'"),
        (member("..\\evil"), r"must unpack inside its folder, but holds"),
        (member("C:evil"), "must unpack inside its folder, but holds 'C:evil'"),
        (member("evil", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "must hold plain files and folders only, but 'evil' is a link or a device"),
        (member("evil", type=tarfile.LNKTYPE, linkname="../secret"), "but 'evil' is a link or a device"),
        (member("evil", type=tarfile.FIFOTYPE), "but 'evil' is a link or a device"),
        (member("evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "but 'evil' is a link or a device"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else None,
)
def test_archive_that_wants_out_is_refused(tmp_path: Path, made: tarfile.TarInfo, message: str) -> None:
    archive = write_tar(tmp_path / "hostile.tgz", member("good"), made, content=b"hello")
    (tmp_path / "in").mkdir()
    with pytest.raises(RuntimeError, match=message):
        archives.unpack(archive, tmp_path / "in/side")
    assert names(tmp_path) == ["hostile.tgz", "in"]
    assert names(tmp_path / "in") == ["side"]


def test_file_through_a_link_is_refused(tmp_path: Path) -> None:
    link = member("link", type=tarfile.SYMTYPE, linkname="..")
    with pytest.raises(RuntimeError, match="'link' is a link or a device"):
        archives.unpack(write_tar(tmp_path / "hostile.tgz", link, member("link/evil"), content=b"hello"), tmp_path / "inside")


@pytest.mark.parametrize(("bytes_", "files"), [(999, 10), (10**6, 4)])
def test_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_: int, files: int) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", bytes_)
    monkeypatch.setattr(archives, "MOST_FILES", files)
    archive = write_tar(tmp_path / "bomb.tgz", *(member(f"file{i}") for i in range(5)), content=bytes(200))
    with pytest.raises(RuntimeError, match=r"bomb.tgz must unpack to at most [\d,]+ bytes in \d+ files, but holds more"):
        archives.unpack(archive, tmp_path / "inside")


def test_bomb_of_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 10**6)
    write_downsampled(tmp_path / "imagenet32", 32, "npz")
    np.savez_compressed(tmp_path / "imagenet32/train_data_batch_1.npz", data=np.zeros((1000, 3072), np.uint8), labels=np.ones(1000, int))
    with pytest.raises(ValueError, match=r"batch_1.npz must be a batch of images, .*: it must unpack to at most 1,000,000 bytes, but says that it has 3,"):
        load("imagenet32", tmp_path)


@pytest.mark.parametrize("damage", [lambda c: c[:500], lambda c: b"", lambda c: b"<html>", lambda c: c[:40] + b"\0\0\0\0" + c[44:]])
def test_archive_that_is_none_is_refused(tmp_path: Path, cifar: bytes, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "broken.tgz").write_bytes(damage(cifar))
    with pytest.raises((RuntimeError, OSError)):
        archives.unpack(tmp_path / "broken.tgz", tmp_path / "inside")


def test_unpacked_files_are_those_that_were_packed(tmp_path: Path, cifar: bytes) -> None:
    (tmp_path / "good.tgz").write_bytes(cifar)
    archives.unpack(tmp_path / "good.tgz", tmp_path / "inside")
    for path in (tmp_path / "made").rglob("*"):
        there = tmp_path / "inside" / path.relative_to(tmp_path / "made")
        assert there.is_dir() if path.is_dir() else there.read_bytes() == path.read_bytes()
        assert not there.stat().st_mode & 0o7000, "no special rights"
