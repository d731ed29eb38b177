"""Image sets from the net: checked by checksum, unpacked inside their folder, there when whole.

What comes from outside is not trusted: not the connection, which may break, stall or lie, and not
the archive, whose names and links may point anywhere.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import torch

__all__ = ["ARCHIVES", "SUMS", "check_zip", "install", "read_checked", "unpack"]

SUMS = "SHA256SUMS"  # lines as sha256sum writes them: the checksum, two spaces, the file

# name -> where its authors keep it, and the SHA-256 of what lies there
ARCHIVES: dict[str, tuple[str, str]] = {
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "cifar100": ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
    "imagenette": ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz", "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5"),
}
PATIENCE, DAY = 30.0, 86_400  # seconds: without a byte from the net, and of a day
MOST_BYTES, MOST_FILES = 2 * 2**30, 100_000  # the largest of the sets unpacks to a fifth of either


def install(name: str, root: Path) -> None:
    """Downloads a set and unpacks it into ``root``; an archive that lies there already is not downloaded.

    Args:
        name: one of :data:`ARCHIVES`.
        root: gets a folder, moved there when it is whole: what breaks off leaves nothing that looks like a set.

    Raises:
        OSError: there is no network, it stalls for 30 s, or the disk is full or cannot be written.
        RuntimeError: the archive is not the one that its authors published.
    """
    url, sha256 = ARCHIVES[name]
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".download-*"):  # of a process that was killed; a live one has written lately
        if time.time() - left.stat().st_mtime > DAY:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        archive = root / url.rpartition("/")[2]
        if not archive.is_file():
            archive = Path(temporary) / archive.name
            with _patience(PATIENCE):
                torch.hub.download_url_to_file(url, str(archive))
        if (found := _sha256(archive)) != sha256:
            raise RuntimeError(f"{archive} must have the SHA-256 {sha256}, got {found}: it was damaged or exchanged")
        unpacked = Path(temporary) / "unpacked"
        unpack(archive, unpacked)
        for entry in unpacked.iterdir():
            _write_sums(entry)
            _move(entry, root / entry.name)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive of plain files and folders.

    Args:
        archive: compressed or not.
        folder: is made; nothing is written outside it.

    Raises:
        RuntimeError: the archive is damaged, holds a link, a device or a path that leads out of the
            folder, or unpacks to more than 2 GiB or 100,000 files.
    """
    folder.mkdir(parents=True)
    size = 0
    try:
        with tarfile.open(archive) as tar:
            for count, member in enumerate(tar, start=1):
                size += member.size
                if size > MOST_BYTES or count > MOST_FILES:
                    raise RuntimeError(f"{archive.name} must unpack to at most {MOST_BYTES:,} bytes in {MOST_FILES:,} files, but holds more")
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
                    raise RuntimeError(f"{archive.name} must unpack inside its folder, but holds {member.name!r}")
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None and not member.isdir():
                    raise RuntimeError(f"{archive.name} must hold plain files and folders only, but {member.name!r} is a link or a device")
                _write(folder.joinpath(*path.parts), stream)
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise RuntimeError(f"{archive.name} must be a tar archive, but cannot be read as one: {error}") from error


def check_zip(stream: IO[bytes]) -> None:
    """Raises ValueError where a zip archive unpacks to more than 2 GiB."""
    with zipfile.ZipFile(stream) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    stream.seek(0)
    if size > MOST_BYTES:
        raise ValueError(f"it must unpack to at most {MOST_BYTES:,} bytes, but says that it has {size:,}")


def read_checked(path: Path) -> bytes:
    """A file's bytes, held against ``SHA256SUMS`` beside it, where there is one that names it.

    Raises:
        ValueError: they are not those of the checksum.
        OSError: the file cannot be read.
    """
    content, sums = path.read_bytes(), path.with_name(SUMS)
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}.get(path.name)
    if wanted not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(f"its checksum is not that of {SUMS}, so it was damaged or exchanged")
    return content


# ---------------------------------------------------------------------------------------------


def _move(entry: Path, place: Path) -> None:
    """Another process may have been faster, even while this one looks: what it put there is whole, and stays."""
    if not place.exists():
        try:
            entry.replace(place)
        except OSError:
            if not place.is_dir():
                raise


def _write_sums(folder: Path) -> None:
    """Checksums of the files in a folder: what lies on a disk for years is read again and again."""
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.is_file()]
    if lines:
        (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _write(path: Path, stream: IO[bytes] | None) -> None:
    """A file with the stream's bytes; without a stream, a folder."""
    if stream is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        shutil.copyfileobj(stream, target)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Sockets made meanwhile give up after so many seconds of silence, instead of never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
