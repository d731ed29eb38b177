"""Image trees: read as they are, decoded once, and never taken from a file that is not of them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import write_tree
from PIL import Image

from sdap_lite.data import load
from sdap_lite.image_files import trees
from sdap_lite.image_files.trees import read_tree


def test_names_of_classes_may_be_any(tmp_path: Path) -> None:
    write_tree(tmp_path / "my images ☃", classes=("a cat", "собака"))
    assert load("folder", tmp_path / "my images ☃", size=32).classes == ("a cat", "собака")


def test_images_are_cropped_to_the_middle_and_resized(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200  # the middle square
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "a/0.png")
    found = load("folder", tmp_path, size=10).train.images
    assert found.shape == (1, 3, 10, 10)
    assert (found[..., 1:-1] == 200).all(), "but for the smoothing at the border"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    ending = "jpg" if mode == "CMYK" else "png"
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / part / f"a/0.{ending}")
    assert load("folder", tmp_path, size=8).train.images.float().min() >= 250


def test_files_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/README").write_text("no class")
    assert len(load("folder", tmp_path, size=32).train) == 6


@pytest.mark.parametrize("ending", ["jpeg", "JPG", "ppm", "bmp", "pgm", "tif", "tiff", "webp"])
def test_images_of_every_ending_are_read(tmp_path: Path, ending: str) -> None:
    write_tree(tmp_path)
    image = Image.new("L" if ending == "pgm" else "RGB", (32, 32), "white")
    image.save(tmp_path / f"train/cat/x.{ending}")
    found = load("folder", tmp_path, size=32).train
    assert len(found) == 7
    assert found.images[3].float().min() >= 250, "the last of the cats"


def test_folders_within_a_class_are_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for folder, grey in (("more/of/them", 250), (".thumbnails", 0), ("a.png", 120)):
        (tmp_path / "train/cat" / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32), (grey,) * 3).save(tmp_path / "train/cat" / folder / "9.png")
    (tmp_path / "train/cat/._0.png").write_bytes(b"\0\5\26\7Mac OS X")
    found = load("folder", tmp_path, size=32).train
    assert found.labels.tolist() == [0] * 5 + [1] * 3
    assert found.images[:5, 0, 0, 0].tolist() == [0, 40, 80, 120, 250], "in the order of their paths"


def test_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    whole = (tmp_path / "train/cat/1.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "train/cat/1.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"train.cat.1.png must be an image, but cannot be read as one"):
            load("folder", tmp_path, size=32)


@pytest.mark.parametrize("ending", ["png", "ppm"])
def test_grey_levels_of_16_bits_keep_the_higher_8(tmp_path: Path, ending: str) -> None:
    levels = np.array([[0, 255, 256, 511], [512, 32767, 32768, 65535]], np.uint16).repeat(2, 0)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(levels).save(tmp_path / part / f"a/0.{ending}")
    found = load("folder", tmp_path, size=4).train.images[0]
    assert found[0, ::2].tolist() == [[0, 0, 1, 1], [2, 127, 128, 255]]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_grey_levels_without_a_known_range_are_refused(tmp_path: Path, kind: type[np.generic], mode: str) -> None:
    write_tree(tmp_path)
    Image.fromarray(np.full((8, 8), 7, kind)).save(tmp_path / "train/cat/1.png", "TIFF")  # what a file is, its content says
    with pytest.raises(ValueError, match=rf"train.cat.1.png must be an image, .*: its grey levels must have 8 or 16 bits, but are of Pillow's mode '{mode}'"):
        load("folder", tmp_path)


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / ".ipynb_checkpoints").mkdir()
    images = load("folder", tmp_path, size=8)
    assert images.classes == ("cat", "dog")
    assert images.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("content", [(), ("scan.gif", "notes.txt")])
def test_class_without_training_images_is_refused(tmp_path: Path, content: tuple[str, ...]) -> None:
    write_tree(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "bear").mkdir()
        for name in content:
            (tmp_path / part / "bear" / name).touch()
    with pytest.raises(ValueError, match=r"train: every class must have at least one training image \(\.jpg, .*\), but bear has none"):
        load("folder", tmp_path)


def test_class_of_test_images_only_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "test/wolf").mkdir()
    with pytest.raises(ValueError, match=r"test: every class must also be in .*train, but wolf is not"):
        load("folder", tmp_path)


# What is kept


def same(one: trees.Pixels, other: trees.Pixels) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, size: int) -> np.ndarray:
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(trees, "_read_image", fail)


def kept(tree: Path, size: int = 8) -> Path:
    return tree / f".decoded-{size}.safetensors"


def test_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path)
    (train, test), classes = read_tree(tmp_path, 8)
    no_decoder(monkeypatch)
    (train_again, test_again), classes_again = read_tree(tmp_path, 8)
    assert same(train, train_again)
    assert same(test, test_again)
    assert classes == classes_again == ("cat", "dog")


def test_what_another_decoder_kept_is_decoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(trees, "DECODER", trees.DECODER - 1)
        before.setattr(trees, "_read_image", lambda path, size: np.zeros((size, size, 3), np.uint8))
        assert not read_tree(tmp_path, 8)[0][0][0].any()
    assert read_tree(tmp_path, 8)[0][0][0].any()


def test_each_size_is_kept_for_itself(tmp_path: Path) -> None:
    write_tree(tmp_path)
    assert [read_tree(tmp_path, size)[0][0][0].shape[-1] for size in (8, 16, 8, 16)] == [8, 16, 8, 16]
    assert kept(tmp_path, 8).exists()
    assert kept(tmp_path, 16).exists()


def rewrite(tree: Path) -> None:
    """Another picture of the same length, at another time."""
    file = tree / "train/cat/0.png"
    length, time = file.stat().st_size, file.stat().st_mtime_ns
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(file)
    file.write_bytes(file.read_bytes().ljust(length, b"\0")[:length])
    os.utime(file, ns=(time + 1000, time + 1000))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another picture": rewrite,
    "one more": lambda tree: Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tree / "test/dog/9.png"),
    "one less": lambda tree: (tree / "train/dog/0.png").unlink(),
    "another class": lambda tree: (tree / "train/dog/0.png").rename(tree / "train/cat/9.png"),
    "another part": lambda tree: (tree / "train/dog/0.png").rename(tree / "test/dog/9.png"),
    "another order": lambda tree: (tree / "train/dog/0.png").rename(tree / "train/dog/9.png"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_images_are_decoded_anew(tmp_path: Path, change: str) -> None:
    write_tree(tmp_path)
    before = read_tree(tmp_path, 8)[0]
    CHANGES[change](tmp_path)
    after, fresh = (read_tree(tmp_path, 8, keep=keep)[0] for keep in (True, False))
    assert same(after[0], fresh[0])
    assert same(after[1], fresh[1])
    assert not (same(before[0], after[0]) and same(before[1], after[1]))


def test_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path)
    right = read_tree(tmp_path, 8)[0]
    whole, draw = kept(tmp_path).read_bytes(), random.Random(0)
    damaged = [b"", b"no tensors", whole[:100], whole[:-1], whole + b"\0"]
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(content))
    for content in damaged:
        kept(tmp_path).write_bytes(content)
        found = read_tree(tmp_path, 8)[0]
        assert same(found[0], right[0])
        assert same(found[1], right[1])
    kept(tmp_path).write_bytes(damaged[0])
    read_tree(tmp_path, 8)
    no_decoder(monkeypatch)  # since it was written anew
    assert same(read_tree(tmp_path, 8)[0][0], right[0])


def test_folder_that_cannot_be_written_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(trees, "save_file", full)
    assert len(read_tree(tmp_path, 8)[0][0][1]) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"], "nothing half-written is left"


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "..decoded-8.safetensors.abc.tmp").write_bytes(b"half of it")
    read_tree(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".decoded-8.safetensors", "test", "train"]


def test_large_sets_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path)
    monkeypatch.setattr(trees, "LARGEST", 10 * 3 * 8 * 8 - 1)
    read_tree(tmp_path, 8)
    assert not kept(tmp_path).exists()
    monkeypatch.setattr(trees, "LARGEST", 10 * 3 * 8 * 8)
    read_tree(tmp_path, 8)
    assert kept(tmp_path).exists()


def test_folder_of_the_users_own_is_left_as_it_is(tmp_path: Path) -> None:
    write_tree(tmp_path / "own")
    write_tree(tmp_path / "cifar10")
    load("folder", tmp_path / "own", size=8)
    load("cifar10", tmp_path, size=8)
    assert not kept(tmp_path / "own").exists()
    assert kept(tmp_path / "cifar10").exists()
