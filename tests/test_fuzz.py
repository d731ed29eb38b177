"""Random networks through the whole of ``prune``, and damaged files: an error or the right result, never a wrong one.

Two hundred networks and forty examples of each kind of file here; ``make fuzz`` draws two thousand of each, and counts what came out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import assert_same_bits, build, fingerprint, pictures, randomize
from PIL import Image
from test_data import noise, write_cifar10, write_downsampled
from test_random_cnn import BLOCKS, Random
from torch import Tensor, nn

from sdap_lite import Split, baselines, cost, count_params, data, largest_rate, load, prune, pruning, records, save, trace
from sdap_lite.checkpoint import NAME, read_checkpoint, sealed, write_checkpoint
from sdap_lite.image_files import archives, batch_files, trees
from sdap_lite.variants import Variant

COUNTS: dict[str, Counter[str]] = {}


@pytest.fixture(autouse=True, scope="module")
def counted() -> Iterator[None]:
    """Writes down how often each test found what, where ``SDAP_COUNTS`` names a file."""
    yield
    if "SDAP_COUNTS" in os.environ:
        Path(os.environ["SDAP_COUNTS"]).write_text(json.dumps(COUNTS))


def outcome(of: str, call: Callable[[], Any], check: Callable[[Any], None], refusal: type[Exception] | tuple[type[Exception], ...] = ValueError) -> None:
    """Calls: what comes back must be right, and an error must be one of those that are promised."""
    try:
        found = call()
    except refusal:
        COUNTS.setdefault(of, Counter())["refused"] += 1
    else:
        check(found)
        COUNTS.setdefault(of, Counter())["right"] += 1


# Networks


@hypothesis.settings(max_examples=max(200, hypothesis.settings().max_examples))  # the nightly profile's are more
@given(
    blocks=st.lists(st.tuples(st.sampled_from(list(BLOCKS)), st.integers(1, 2)), min_size=1, max_size=3),
    flatten=st.booleans(),
    shape=st.tuples(st.sampled_from([1, 3]), st.sampled_from([4, 6, 8]), st.sampled_from([4, 6, 8])),
    counts=st.tuples(st.integers(6, 20), st.integers(1, 6), st.integers(2, 5)),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    settings=st.fixed_dictionaries(
        {
            "unit": st.sampled_from(["params", "macs", "channels"]),
            "round_to": st.integers(1, 8),
            "rule": st.sampled_from(["rms", "straight-through", "adam", "frozen"]),
            "ramp": st.sampled_from([0.0, 0.4, 1.0]),
            "cuts": st.integers(1, 3),
            "alpha": st.sampled_from([0.0, 0.9]),
            "cost_power": st.sampled_from([0.0, 0.5, 1.0]),
            "hold": st.sampled_from([0.0, 0.5, 100.0]),
            "batch_size": st.integers(2, 9),
            "epochs": st.integers(1, 2),
            "variant": st.sampled_from([None, Variant(maps=5.0), Variant(scaling=True), Variant(soft=30.0), Variant(labels=True, floor=0.2, shape=1.0)]),
            "mode": st.sampled_from(["fp32", "fp32-channels-last", "bf16-channels-last"]),
        }
    ),
)
def test_prune_any_network(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[tuple[str, int]],
    flatten: bool,
    shape: tuple[int, int, int],
    counts: tuple[int, int, int],
    share: float,
    seed: int,
    settings: dict[str, Any],
) -> None:
    if settings["variant"] and settings["variant"].start:  # gates whose value is trained
        settings |= {"rule": "adam", "ramp": max(settings["ramp"], 0.4), "unit": settings["unit"].replace("channels", "params")}
    if settings["variant"] and settings["variant"].floor:  # of scores from 0 on
        settings |= {"rule": {"straight-through": "rms", "adam": "frozen"}.get(settings["rule"], settings["rule"])}
    net, images = network(blocks, flatten, shape, seed), rectangles(shape, *counts)
    before, graph = fingerprint(net), trace(net, torch.zeros(1, *shape))
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and name in graph.layers]
    if settings["rule"] == "frozen" and not any(bool(graph.removable[graph.layers[name].outputs].any()) for name in norms):
        settings |= {"scores": baselines.l1(net, graph)}  # there are no scales to start from
    rate = share * largest_rate(graph, settings["unit"], settings["round_to"])
    fixed = cost(graph, unit="channels") - sum(len(group) for group in graph.prunable.values())

    def check(result: Any) -> None:
        small, report = result.model, result.report
        assert report.achieved() >= rate - 1e-9
        assert count_params(small) == cost(graph, result.kept) == report.after["params"]
        assert all(k % settings["round_to"] == 0 or k == whole for k, whole in report.widths.values())
        again = trace(small, torch.zeros(1, *shape))
        # A new trace counts as well what is tied in the whole network and free where one channel is left: not to be held against "channels".
        assert {unit: cost(again, unit=unit) for unit in ("params", "macs")} == {unit: report.after[unit] for unit in ("params", "macs")}
        assert report.after["channels"] == sum(int(k.sum()) for k in result.kept.values()) + fixed
        path = tmp_path_factory.getbasetemp() / "fuzzed"
        save(small, path)
        assert_same_bits(load(path, network(blocks, flatten, shape, seed + 1)), fingerprint(small))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pruning, "CLOSE_EVERY", 1)  # so short are these runs
        outcome("prune", lambda: prune(net, images, rate, lr=0.01, seed=seed, device="cpu", progress=False, **settings), check, FloatingPointError)
    assert_same_bits(net, before)


def network(blocks: list[tuple[str, int]], flatten: bool, shape: tuple[int, ...], seed: int) -> torch.nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return randomize(Random(2, [(name, 6 * inner) for name, inner in blocks], flatten, shape), seed)


def rectangles(shape: tuple[int, int, int], train: int, test: int, classes: int) -> data.Images:
    """Images that need not be square."""
    made = pictures(train, test, classes=classes, channels=shape[0], size=8)

    def cut(split: Split) -> Split:
        return Split(split.images[:, :, : shape[1], : shape[2]].contiguous(), split.labels)

    return data.Images("pictures", cut(made.train), cut(made.test), made.classes, made.mean, made.std, made.note)


# Files


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What may happen to a file: a bit flips, a byte changes, a part is lost, doubled, zeroed or moved."""
    kind = draw(st.sampled_from(["bit", "bit", "bit", "byte", "bits", "cut", "drop", "double", "zeros", "swap", "append"]))
    where, other, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 64))
    value = draw(st.integers(1, 255))

    def apply(content: bytes) -> bytes:
        changed = bytearray(content)
        i, j = int(where * len(content)), int(other * len(content))
        if kind in ("bit", "bits"):
            for place in (i, j) if kind == "bits" else (i,):
                changed[place] ^= 1 << value % 8
        elif kind == "byte":
            changed[i] = value
        elif kind == "cut":
            del changed[i:]
        elif kind == "drop":
            del changed[i : i + length]
        elif kind == "double":
            changed[i:i] = changed[i : i + length]
        elif kind == "zeros":
            changed[i : i + length] = bytes(len(changed[i : i + length]))
        elif kind == "swap":
            changed[i], changed[j] = changed[j], changed[i]
        else:
            changed += bytes([value]) * length
        return bytes(changed)

    return apply


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A saved network, grouped so that a wrong recipe would compute something else."""
    folder = tmp_path_factory.mktemp("saved")
    save(build("grouped"), folder / "net")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("which", ["net.safetensors", "net.json"])
@given(change=damage())
def test_damaged_network(tmp_path_factory: pytest.TempPathFactory, saved: dict[str, bytes], which: str, change: Callable[[bytes], bytes]) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, content in saved.items():
        (folder / name).write_bytes(change(content) if name == which else content)
    wanted = build("grouped")

    def check(found: torch.nn.Module) -> None:
        assert_same_bits(found, fingerprint(wanted))
        assert str(found) == str(wanted)

    outcome("weights" if which.endswith("tensors") else "recipe", lambda: load(folder / "net", build("grouped", seed=1)), check)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(path=st.lists(st.integers(0, 99), min_size=1, max_size=3), value=json_values)
def test_foreign_recipe(tmp_path_factory: pytest.TempPathFactory, saved: dict[str, bytes], path: list[int], value: object) -> None:
    """A recipe whose checksum is right, but which says anything at all, somewhere: its maker is not trusted."""
    folder, card = tmp_path_factory.getbasetemp(), json.loads(saved["net.json"])
    del card["checksum"]
    part: Any = card
    for step in path[:-1]:
        inner = [v for v in part.values() if isinstance(v, dict)]
        part = inner[step % len(inner)] if inner else part
    part[sorted(part)[path[-1] % len(part)]] = value
    (folder / "net.safetensors").write_bytes(saved["net.safetensors"])
    (folder / "net.json").write_text(json.dumps(sealed(card)))

    def check(found: torch.nn.Module) -> None:
        assert_same_bits(found, fingerprint(build("grouped")))
        assert found(torch.zeros(1, 3, 16, 16)).isfinite().all()

    outcome("foreign recipe", lambda: load(folder / "net", build("grouped", seed=1)), check)


CONTENT: dict[str, Any] = {
    "settings": {"epochs": 3, "rate": 0.75},
    "model": {f"w{i}": torch.randn(7, generator=torch.Generator().manual_seed(i)) for i in range(6)},
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
    "history": [{"loss": 1.5}],
    "kept": {"a": torch.tensor([True, False])},
}


def assert_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_equal(found[key], wanted[key])
    else:
        assert found == wanted


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, CONTENT)
    return (folder / NAME).read_bytes()


@given(change=damage())
def test_damaged_checkpoint(tmp_path_factory: pytest.TempPathFactory, written: bytes, change: Callable[[bytes], bytes]) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / NAME).write_bytes(change(written))
    outcome("checkpoint", lambda: read_checkpoint(folder), lambda found: assert_equal(found, CONTENT))


@given(change=damage())
def test_damaged_record(tmp_path_factory: pytest.TempPathFactory, change: Callable[[bytes], bytes]) -> None:
    folder = tmp_path_factory.getbasetemp() / "bundled/results"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"card": {"command": "python scripts/record.py speed", "seed": 0}, "rows": [{"rate": 0.75, "test": 0.8556}, {"rate": 0.9, "test": 0.8412}]}
    (folder / "speed.json").write_bytes(change(json.dumps(sealed(record), indent=1).encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records.resources, "files", lambda _: folder.parents[1])
        # Where the checksum's own name was damaged, the figures are whole, and that name stands beside them.
        outcome("record", lambda: records.recorded("speed"), lambda found: assert_equal({key: found[key] for key in record}, record))


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 and downsampled ImageNet in small, with checksums."""
    root = tmp_path_factory.mktemp("batches")
    write_cifar10(root)
    write_downsampled(root / "imagenet32", 32, "npz")
    for folder in ("cifar-10-batches-py", "imagenet32"):
        archives._write_sums(root / folder)
    return root


@pytest.mark.parametrize(("name", "file"), [("cifar10", "cifar-10-batches-py/data_batch_1"), ("imagenet32", "imagenet32/train_data_batch_1.npz")])
@given(change=damage())
def test_damaged_batch(tmp_path_factory: pytest.TempPathFactory, batches: Path, name: str, file: str, change: Callable[[bytes], bytes]) -> None:
    """With a checksum beside it, a damaged file is refused; without one, it is an error or at least a set of images."""
    for sums in (True, False):
        root = tmp_path_factory.mktemp("copy")
        shutil.copytree(batches, root, dirs_exist_ok=True)
        wanted = data.load(name, root, download=False)
        (root / file).write_bytes(change((root / file).read_bytes()))
        (root / file).with_name(archives.SUMS).unlink() if not sums else None

        def check(found: data.Images, wanted: data.Images = wanted, sums: bool = sums) -> None:
            assert found.train.images.shape[1:] == (3, 32, 32)
            if sums:
                assert torch.equal(found.train.images, wanted.train.images)
                assert torch.equal(found.train.labels, wanted.train.labels)

        outcome("batch" if sums else "batch without a checksum", lambda root=root: data.load(name, root, download=False), check)
        shutil.rmtree(root)


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([bytes([op]) for op in range(256)] + [b"cnumpy\ndtype\n", b"X\x02\x00\x00\x00u1"]), max_size=30).map(b"".join)
)
def test_foreign_pickle(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "foreign"
    path.write_bytes(content)
    outcome("foreign pickle", lambda: batch_files._read_batch(path), lambda found: assert_equal(type(found), dict))


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@given(change=damage())
def test_damaged_image(tmp_path_factory: pytest.TempPathFactory, ending: str, change: Callable[[bytes], bytes]) -> None:
    """A flipped bit of a JPEG is another picture, as nothing in the file says otherwise; but always one of the right size."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"image.{ending}"
    Image.fromarray(noise(1)[0].transpose(1, 2, 0)).save(path)
    path.write_bytes(change(path.read_bytes()))

    def check(found: np.ndarray) -> None:
        assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)

    outcome("image", lambda: trees._read_image(str(path), 16), check)
