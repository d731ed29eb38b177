"""Image sets: every loader on files of the right format, and what happens when they are not."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nets import pictures, write_tree
from PIL import Image
from torch import Tensor

from sdap_lite import DatasetUnavailable, Split, by_scale, data
from sdap_lite.data import augment, batches, load, normalize

Array = np.ndarray


def noise(count: int, side: int = 32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)


def as_python_2(content: object) -> bytes:
    """The bytes that the sets' authors wrote: protocol 2, and numpy's module by its old name."""
    stored = pickle.dumps(content, protocol=2)
    return stored.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


# Files in the layouts of their authors


def write_cifar10(root: Path, encode: Callable[[object], bytes] = as_python_2, count: int = 24) -> tuple[Array, list[int]]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels, labels, size = noise(count), [7 * i % 10 for i in range(count)], count // 6
    for i in range(6):
        part = slice(size * i, size * i + size)
        content = {"batch_label": f"batch {i}", "labels": labels[part], "data": pixels[part].reshape(size, -1), "filenames": ["a.png"] * size}
        (folder / (f"data_batch_{i + 1}" if i < 5 else "test_batch")).write_bytes(encode(content))
    (folder / "batches.meta").write_bytes(encode({"label_names": list("abcdefghij"), "num_cases_per_batch": 4, "num_vis": 3072}))
    return pixels, labels


def write_cifar100(root: Path) -> tuple[Array, list[int]]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels, labels = noise(12), [(7 * i) % 100 for i in range(12)]
    for name, part in (("train", slice(0, 8)), ("test", slice(8, 12))):
        content = {"fine_labels": labels[part], "coarse_labels": [0] * 8, "data": pixels[part].reshape(-1, 3072)}
        (folder / name).write_bytes(as_python_2(content))
    (folder / "meta").write_bytes(as_python_2({"fine_label_names": [f"class {i}" for i in range(100)], "coarse_label_names": []}))
    return pixels, labels


def write_downsampled(folder: Path, side: int, kind: str, count: int = 3) -> tuple[Array, Array]:
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = noise(2 * count + 2, side, side), np.arange(1, 2 * count + 3) * 100
    for i, name in enumerate(("train_data_batch_1", "train_data_batch_2", "val_data")):
        part = slice(count * i, count * i + (count if i < 2 else 2))
        flat, numbers = pixels[part].reshape(-1, 3 * side * side), labels[part]
        if kind == "npz":
            np.savez(folder / f"{name}.npz", data=flat, labels=numbers, mean=flat.mean(0))
        else:
            (folder / name).write_bytes(pickle.dumps({"data": flat, "labels": numbers.tolist(), "mean": flat.mean(0)}))
    return pixels, labels - 1


def by_class(pixels: Array, labels: list[int]) -> tuple[Array, list[int]]:
    """Class by class, each as it was."""
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return pixels[order], [labels[i] for i in order]


def assert_split(split: Split, pixels: Array, labels: object) -> None:
    assert torch.equal(split.images, torch.from_numpy(pixels))
    assert split.labels.tolist() == list(labels)  # type: ignore[call-overload]


@pytest.mark.parametrize("encode", [as_python_2, pickle.dumps], ids=["as the authors wrote it", "as numpy writes today"])
def test_cifar10(tmp_path: Path, encode: Callable[[object], bytes]) -> None:
    pixels, labels = write_cifar10(tmp_path, encode)
    images = load("cifar10", tmp_path, download=False)
    assert_split(images.train, *by_class(pixels[:20], labels[:20]))
    assert_split(images.test, *by_class(pixels[20:], labels[20:]))
    assert images.classes == tuple("abcdefghij")
    assert (images.name, images.note) == ("cifar10", "CIFAR-10")


def test_cifar100(tmp_path: Path) -> None:
    pixels, labels = write_cifar100(tmp_path)
    images = load("cifar100", tmp_path, download=False)
    assert_split(images.train, *by_class(pixels[:8], labels[:8]))
    assert_split(images.test, *by_class(pixels[8:], labels[8:]))
    assert len(images.classes) == 100


def test_both_layouts_of_cifar_hold_out_the_same_images(tmp_path: Path) -> None:
    """A tree has the images of a class in the authors' order, one class after the other."""
    pixels, labels = write_cifar10(tmp_path / "batches", count=240)
    counts: Counter[tuple[str, int]] = Counter()
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        part = "train" if i < 200 else "test"
        folder = tmp_path / "trees/cifar10" / part / "abcdefghij"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{counts[part, label]:04}.png")
        counts[part, label] += 1
    batches, tree = (load("cifar10", tmp_path / layout, download=False) for layout in ("batches", "trees"))
    assert batches.classes == tree.classes
    for one, other in zip((batches.train, batches.test, *batches.hold_out()), (tree.train, tree.test, *tree.hold_out()), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_cifar_without_the_names_of_its_classes_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    for content, found in (({}, "none"), ({"label_names": 3}, "int"), ({"label_names": [1, 2]}, "list")):
        (tmp_path / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=rf"batches.meta must hold a list of the classes' names as 'label_names', got {found}"):
            load("cifar10", tmp_path)


@pytest.mark.parametrize("kind", ["npz", "pickle"])
@pytest.mark.parametrize("side", [32, 64])
def test_downsampled_imagenet(tmp_path: Path, side: int, kind: str) -> None:
    pixels, labels = write_downsampled(tmp_path / f"imagenet{side}", side, kind)
    images = load(f"imagenet{side}", tmp_path)
    assert_split(images.train, pixels[:6], labels[:6])
    assert_split(images.test, pixels[6:], labels[6:])
    assert len(images.classes) == 1000


def test_both_sizes_of_imagenet_side_by_side(tmp_path: Path) -> None:
    written = {side: write_downsampled(tmp_path / f"imagenet{side}", side, "pickle") for side in (32, 64)}
    for side, (pixels, labels) in written.items():
        assert_split(load(f"imagenet{side}", tmp_path).train, pixels[:6], labels[:6])


def test_folder_may_be_a_link(tmp_path: Path) -> None:
    pixels, labels = write_downsampled(tmp_path / "disk", 32, "npz")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/imagenet32").symlink_to(tmp_path / "disk")
    assert_split(load("imagenet32", tmp_path / "root").train, pixels[:6], labels[:6])


def test_downsampled_imagenet_in_its_authors_folders(tmp_path: Path) -> None:
    pixels, labels = write_downsampled(tmp_path / "Imagenet32_train", 32, "npz")
    (tmp_path / "Imagenet32_val").mkdir()
    (tmp_path / "Imagenet32_train/val_data.npz").rename(tmp_path / "Imagenet32_val/val_data.npz")
    assert_split(load("imagenet32", tmp_path).train, pixels[:6], labels[:6])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet32", "imagenette", "folder"])
@pytest.mark.parametrize("test", ["test", "val"])
def test_image_tree(tmp_path: Path, name: str, test: str) -> None:
    written = write_tree(tmp_path if name == "folder" else tmp_path / name, test=test)
    images = load(name, tmp_path, size=32, download=False)
    assert images.classes == ("cat", "dog")
    for split, part in ((images.train, "train"), (images.test, test)):
        assert_split(split, np.stack(written[part]).transpose(0, 3, 1, 2), [i // (len(split) // 2) for i in range(len(split))])
    assert not images.note.endswith("(JPEG copy)")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet32", "imagenette", "folder"])
@pytest.mark.parametrize("ending", ["jpg", "JPEG"])
def test_image_tree_of_jpegs(tmp_path: Path, name: str, ending: str) -> None:
    """They are copies where the authors have the pixels themselves."""
    write_tree(tmp_path if name == "folder" else tmp_path / name, ending=ending)
    assert load(name, tmp_path, size=32, download=False).note.endswith("(JPEG copy)") == (name not in ("imagenette", "folder"))


@pytest.mark.parametrize("folder", ["imagenette2-160", "imagenette2-320", "imagenette2", "imagenette"])
def test_imagenette_folder(tmp_path: Path, folder: str) -> None:
    write_tree(tmp_path / folder, test="val", classes=("n01440764", "n02102040"), size=(200, 160), ending="jpg")
    images = load("imagenette", tmp_path, download=False)
    assert images.train.images.shape == (6, 3, 160, 160)
    assert (images.test.images[:, 2].float() - 77).abs().max() <= 2, "JPEG keeps the colour, nearly"
    assert images.note == "Imagenette"


def test_size_is_the_callers(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    for size in (16, np.int64(16)):
        assert load("cifar10", tmp_path, size=size).train.images.shape == (20, 3, 16, 16)  # type: ignore[arg-type]


def test_bundled_set() -> None:
    images = load("fashion-mini")
    assert images.train.images.shape == (10_000, 1, 28, 28)
    assert images.test.images.shape == (2_000, 1, 28, 28)
    for split in (images.train, images.test):
        assert split.labels.bincount().tolist() == [len(split) // 10] * 10, "stratified"
    assert len(images.classes) == 10
    pixels = images.train.images.float() / 255
    assert float(pixels.mean()) == pytest.approx(images.mean[0], abs=0.005)
    assert float(pixels.std()) == pytest.approx(images.std[0], abs=0.005)
    rows = {image.numpy().tobytes() for image in images.train.images}
    assert not any(image.numpy().tobytes() in rows for image in images.test.images[:200]), "the parts do not overlap"


# Where images are looked for


def test_root_is_the_argument_then_the_variable_then_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SDAP_DATA", str(tmp_path / "variable"))
    assert data.data_root("argument") == Path("argument")
    assert data.data_root() == tmp_path / "variable"
    monkeypatch.delenv("SDAP_DATA")
    assert data.data_root() == tmp_path / "home/.cache/sdap_lite"
    assert data.data_root("~/images") == tmp_path / "home/images"


def test_set_is_found_through_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    monkeypatch.setenv("SDAP_DATA", str(tmp_path))
    assert len(load("cifar10", download=False).train) == 20


# Sets that are not there


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenette", "imagenet32", "imagenet64", "folder"])
def test_missing_set_names_the_three_ways_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetUnavailable) as caught:
        load(name, tmp_path / "empty", download=False)
    text = str(caught.value)
    assert text.startswith(f"{name} is not in {tmp_path / 'empty'}: ")
    assert "Three ways out: (1) put the images under" in text
    assert "(2) point root= or SDAP_DATA to a folder that has them" in text
    assert "(3) use the bundled set, load('fashion-mini')" in text
    assert not (tmp_path / "empty").exists()


def test_fallback_says_so_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = load("cifar10", tmp_path, download=False, fallback="fashion-mini", size=16)
    assert images.name == "fashion-mini"
    assert images.train.images.shape[-1] == 16
    first, second = capsys.readouterr().out.splitlines()
    assert first == "!!! cifar10 cannot be had here, so fashion-mini stands in for it: every figure below is fashion-mini's."
    assert second == f"!!! (cifar10 is not in {tmp_path}: downloading was switched off.)"


def test_no_fallback_where_the_set_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar10(tmp_path)
    assert load("cifar10", tmp_path, fallback="fashion-mini").name == "cifar10"
    assert capsys.readouterr().out == ""


def test_broken_set_is_an_error_and_no_reason_to_fall_back(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3 is missing: the set is not complete"):
        load("cifar10", tmp_path, fallback="fashion-mini")


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of cifar10, cifar100, imagenette, .*, got 'mnist'"):
        load("mnist")


# Files that are not what they should be


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [Hostile(), {"data": Hostile(), "labels": [1]}], ids=["itself", "inside"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, protocol: int) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data_batch_1 must be a batch of images, .*may hold numpy arrays and plain containers only, but names \w+.mkdir"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists(), "the file does run code, where it is let"


@pytest.mark.parametrize(
    "code",
    [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"cnumpy.testing\nrundocs\n(S'x'\ntR.", b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93."],
)
def test_only_arrays_are_admitted(tmp_path: Path, code: bytes) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(code)
    with pytest.raises(ValueError, match="may hold numpy arrays and plain containers only"):
        load("cifar10", tmp_path)


def test_hostile_npz_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_downsampled(tmp_path / "imagenet32", 32, "npz")
    np.savez(tmp_path / "imagenet32/train_data_batch_1.npz", data=np.array([Hostile()], dtype=object), labels=[1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"train_data_batch_1.npz must be a batch of images, but cannot be read as one"):
        load("imagenet32", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_batches_are_refused(tmp_path: Path) -> None:
    pixels, _ = write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_1"
    whole = path.read_bytes()
    flat = pixels[:4].reshape(4, -1)
    for content, message in (
        (whole[:100], "must be a batch of images, but cannot be read as one"),
        (b"", "must be a batch of images, but cannot be read as one"),
        (b"version https://git-lfs", "must be a batch of images, but cannot be read as one"),
        (pickle.dumps([1, 2]), "must hold a dictionary, got list"),
        (pickle.dumps({"data": flat}), "a batch must hold 'data' and 'labels', got data"),
        (pickle.dumps({"data": flat[:, :100], "labels": [0] * 4}), r"an image of 32x32 pixels has 3072 numbers, got \(100,\)"),
        (pickle.dumps({"data": flat, "labels": [0] * 3}), "a batch must hold one label for each of its 4 images, got 3"),
        (pickle.dumps({"data": flat, "labels": [0] * 5}), "a batch must hold one label for each of its 4 images, got 5"),
        (pickle.dumps({"data": flat, "labels": [10] * 4}), r"cifar10 in .*: labels must lie in 0…9, got 0…10"),
        (pickle.dumps({"data": flat, "labels": [-1] * 4}), "labels must lie in 0…9, got -1…9"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load("cifar10", tmp_path)


def test_empty_tree_is_refused(tmp_path: Path) -> None:
    for part in ("train/cat", "test/cat"):
        (tmp_path / part).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train: every class must have at least one training image \(\.jpg, .*\), but cat has none"):
        load("folder", tmp_path)
    (tmp_path / "train/cat").rmdir()
    (tmp_path / "test/cat").rmdir()
    with pytest.raises(ValueError, match=r"folder in .*: there must be at least one training image, found none"):
        load("folder", tmp_path)


# Splits


def test_split_checks_what_it_is_given() -> None:
    good = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \[n, channels, height, width\], got torch.float32 \[3, 1, 4, 4\]"):
        Split(good.float(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"images must be uint8 .*, got torch.uint8 \[1, 4, 4\]"):
        Split(good[0], torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \[3\], got torch.int32 \[3\]"):
        Split(good, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \[3\], got torch.int64 \[2\]"):
        Split(good, torch.zeros(2, dtype=torch.long))


def numbered(labels: list[int]) -> Split:
    """Each image holds its own number."""
    numbers = torch.arange(len(labels))
    return Split(torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8)[:, :, None, None], torch.tensor(labels))


def numbers_of(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].long() * 256 + split.images[:, 1, 0, 0]).tolist()


@given(labels=st.lists(st.integers(0, 6), min_size=2, max_size=60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_division_is_stratified_and_whole(labels: list[int], share: float, seed: int) -> None:
    count = min(max(1, round(share * len(labels))), len(labels) - 1)
    whole = numbered(labels)
    chosen, rest = whole.divide(count, seed=seed)
    assert len(chosen) == count
    assert sorted(numbers_of(chosen) + numbers_of(rest)) == list(range(len(labels)))
    for part in (chosen, rest):
        assert [labels[n] for n in numbers_of(part)] == part.labels.tolist(), "labels go with their images"
    counts, there = chosen.labels.bincount(minlength=7).tolist(), whole.labels.bincount(minlength=7).tolist()
    most = max(counts)
    assert all(c in (most, most - 1) or c == n for c, n in zip(counts, there, strict=True)), "as even as can be"
    again = whole.divide(count, seed=seed)[0]
    assert numbers_of(again) == numbers_of(chosen)


def test_another_seed_draws_others() -> None:
    whole = numbered([i % 5 for i in range(200)])
    assert numbers_of(whole.divide(50, seed=0)[0]) != numbers_of(whole.divide(50, seed=1)[0])


@pytest.mark.parametrize("count", [0, 10, 11, -1])
def test_wrong_count_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count must lie between 0 and the number of images, 10, got {count}"):
        numbered([0] * 10).divide(count)


def image_set(labels: list[int]) -> data.Images:
    split, channels = numbered(labels), (0.5, 0.5)
    return data.Images("numbered", split, split[:4], tuple(str(i) for i in range(max(labels) + 1)), channels, channels, "")


IMAGENETTE = (963, 955, 993, 858, 941, 956, 961, 931, 951, 960)


@pytest.mark.parametrize("counts", [(500,) * 10, IMAGENETTE], ids=["balanced", "nearly"])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_held_out_images_of_a_balanced_set_are_those_of_a_plain_division(counts: tuple[int, ...], share: float) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = image_set(labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))].tolist())
    plain = images.train.divide(round(share * len(labels)), seed=0)
    assert [numbers_of(part) for part in images.hold_out(share)] == [numbers_of(part) for part in plain], "recorded results depend on it"


@pytest.mark.parametrize(("rare", "left"), [(12, 6), (3, 2), (2, 1), (1, 1)])
def test_a_rare_class_keeps_half_of_its_training_images(rare: int, left: int) -> None:
    held_out, rest = image_set([i for i in range(9) for _ in range(200)] + [9] * rare).hold_out()
    assert len(held_out) == round(0.1 * (1800 + rare))
    assert rest.labels.bincount().tolist()[9] == left
    assert max(held_out.labels.bincount().tolist()[:9]) - min(held_out.labels.bincount().tolist()[:9]) <= 1


def test_a_large_share_takes_more_than_half_but_never_all() -> None:
    held_out, rest = image_set([0] * 20 + [1] * 20 + [2] * 4).hold_out(0.9)
    assert len(held_out) == 40
    assert rest.labels.bincount().tolist() == [1, 2, 1]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda numbers: np.array(numbers, np.float32)])
def test_mean_and_deviation_may_be_of_any_kind_of_numbers(kind: Callable[[tuple[float, ...]], Any]) -> None:
    images = pictures()
    again = replace(images, mean=kind(images.mean), std=kind(images.std))
    assert again.mean == images.mean == (0.5,) * 3
    assert again.std == images.std
    assert {type(number) for number in (*again.mean, *again.std)} == {float}


def test_limited_set_keeps_its_validation_images_apart() -> None:
    images = pictures(100, 40)
    everything = [image.numpy().tobytes() for image in images.train.images]
    held_out = {image.numpy().tobytes() for image in images.hold_out()[0].images}
    few = images.limit(40, 20)
    assert few.validation is not None
    assert (len(few.train), len(few.validation), len(few.test)) == (40, 4, 20)
    train, validation = ({image.numpy().tobytes() for image in split.images} for split in (few.train, few.validation))
    assert validation <= held_out, "what a pretrained net never saw"
    assert not train & held_out
    assert train <= set(everything)
    assert few.train.labels.bincount().tolist() == [10] * 4
    assert few.hold_out(0.9) == (few.validation, few.train)


def test_limit_beyond_the_set_takes_all() -> None:
    images = pictures(20, 8)
    few = images.limit(1000, 1000)
    assert (len(few.train), len(few.test)) == (18, 8)


# Batches


@given(seed=st.integers(0, 10**6), flip=st.booleans(), side=st.sampled_from([8, 16, 28]), channels=st.sampled_from([1, 3]))
def test_augmented_image_is_a_shifted_crop(seed: int, flip: bool, side: int, channels: int) -> None:
    images = torch.randint(0, 256, (4, channels, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    found = augment(images, torch.Generator().manual_seed(seed), flip=flip)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    pad = side // 8
    for before, after in zip(images, found, strict=True):
        candidates = []
        for mirrored in (False, True) if flip else (False,):
            canvas = torch.zeros(channels, side + 2 * pad, side + 2 * pad, dtype=torch.uint8)
            canvas[:, pad : pad + side, pad : pad + side] = before.flip(2) if mirrored else before
            candidates += [canvas[:, r : r + side, c : c + side] for r in range(2 * pad + 1) for c in range(2 * pad + 1)]
        assert any(torch.equal(after, crop) for crop in candidates)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_augmented_image_moves_by_an_eighth_of_each_side(shape: tuple[int, int]) -> None:
    images = torch.zeros(4000, 1, *shape, dtype=torch.uint8)
    images[:, :, shape[0] // 2, shape[1] // 2] = 255
    places = augment(images, torch.Generator().manual_seed(0), flip=False).flatten(1).argmax(1)
    for side, found in zip(shape, (places // shape[1], places % shape[1]), strict=True):
        assert found.unique().tolist() == list(range(side // 2 - side // 8, side // 2 + side // 8 + 1))


@pytest.mark.parametrize("n", [1, 7, 128])
def test_augmentation_draws_what_recorded_runs_drew(n: int) -> None:
    """Of square images: both shifts in one call, then the mirroring."""
    images = torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    generator, drawn = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    (down, right), mirrored = torch.randint(0, 5, (2, n), generator=drawn).tolist(), torch.randint(0, 2, (n,), generator=drawn).tolist()
    for image, found, y, x, flip in zip(images, augment(images, generator), down, right, mirrored, strict=True):
        crop = F.pad(image, (2, 2, 2, 2))[:, y : y + 16, x : x + 16]
        assert torch.equal(found, crop.flip(2) if flip else crop)
    assert torch.equal(generator.get_state(), drawn.get_state())


@pytest.mark.parametrize("flip", [True, False])
def test_a_set_says_whether_its_images_may_be_mirrored(flip: bool) -> None:
    """An image whose left half is white: mirrored, its right half would be, whatever the shift of an eighth."""
    pixels = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    pixels[..., :8] = 255
    part = Split(pixels, torch.zeros(64, dtype=torch.long))
    images = data.Images("halves", part, part, ("white",), (0.5,), (0.5,), "halves", flip=flip)
    x, _ = next(batches(part, 64, images, shuffle=torch.Generator().manual_seed(0)))
    mirrored = x[..., :8].mean((1, 2, 3)) < x[..., 8:].mean((1, 2, 3))
    assert mirrored.any() == flip
    assert load("fashion-mini", flip=flip).limit(20, 10).flip == flip


def test_augmentation_is_the_generators() -> None:
    images = pictures(32).train.images
    first, second, third = (augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_augmentation_draws_all_shifts_and_mirrors_half() -> None:
    images = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 3, 2] = 255
    places = augment(images, torch.Generator().manual_seed(0)).flatten(1).argmax(1)
    rows, columns = places // 8, places % 8
    assert rows.unique().tolist() == [2, 3, 4]
    assert columns.unique().tolist() == [1, 2, 3, 4, 5, 6]
    assert float((columns > 3).float().mean()) == pytest.approx(0.5, abs=0.05), "column 2 and its mirror image 5, each moved by one"


def test_normalized_images_have_mean_0_and_deviation_1() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    scaled = images.double() / 255
    mean, std = (tuple(f(scaled.transpose(0, 1).flatten(1), dim=1).tolist()) for f in (torch.mean, torch.std))
    found = normalize(images, mean, std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.transpose(0, 1).flatten(1).std(1), torch.ones(3), rtol=0, atol=1e-4)


def test_batches_in_order_are_the_images() -> None:
    images = pictures(10)
    parts = list(batches(images.train, 4, images))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), normalize(images.train.images, images.mean, images.std))
    assert torch.equal(torch.cat([y for _, y in parts]), images.train.labels)


def test_shuffled_batches_hold_each_image_once() -> None:
    images = pictures(30)
    labels = torch.arange(30)
    split = Split(images.train.images, labels)
    for size, left_out in ((8, 0), (29, 1)):  # a single image left over is no batch
        seen = torch.cat([y for _, y in batches(split, size, images, shuffle=torch.Generator().manual_seed(0))])
        assert len(seen.unique()) == len(seen) == 30 - left_out
        assert seen.tolist() != sorted(seen.tolist())
    again = [torch.cat([t.flatten().float() for pair in batches(split, 8, images, shuffle=torch.Generator().manual_seed(s)) for t in pair]) for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_labels_go_with_their_images() -> None:
    images = pictures(24, classes=4)
    for i in range(24):
        images.train.images[i] = 10 * int(images.train.labels[i]) + 100
    for x, y in batches(images.train, 5, images, shuffle=torch.Generator().manual_seed(0)):
        middle: Tensor = x[:, 0, 8, 8] * 0.25 * 255 + 0.5 * 255
        torch.testing.assert_close(middle, 10.0 * y + 100, rtol=0, atol=1e-3)


# The size of a run


def test_by_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDAP_SCALE", raising=False)
    assert by_scale(tiny=1, book=2, full=3) == 2
    for value, name in enumerate(("tiny", "book", "full"), start=1):
        monkeypatch.setenv("SDAP_SCALE", name)
        assert by_scale(tiny=1, book=2, full=3) == value
    monkeypatch.setenv("SDAP_SCALE", "huge")
    with pytest.raises(ValueError, match="SDAP_SCALE must be one of tiny, book, full, got 'huge'"):
        by_scale(tiny=1, book=2, full=3)
