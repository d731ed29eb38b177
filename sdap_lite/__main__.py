"""The command line: ``python -m sdap_lite prune|evaluate|export|data|experiment|grade --help``. Thin, over the API."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from . import data, experiments, measure, models, recipes, saving
from .surgery import SurgeryError
from .train import prune as run_prune

app = typer.Typer(help="Prunes channels of convolutional networks.", no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)

NAMES = [name for name in models.NETS if ":" not in name]
NET = f"One of {', '.join(NAMES)}, one of torchvision's ('torchvision:resnet18'), or a function of yours that builds one ('package.module:function')."
Net = Annotated[str, typer.Option(help=NET)]
Data = Annotated[str, typer.Option("--data", help=f"One of {', '.join(data.SETS)}.")]
Root = Annotated[Path | None, typer.Option(help="Where the images are; default: $SDAP_DATA, else ~/.cache/sdap_lite.")]
Size = Annotated[int | None, typer.Option(help="Resize images to this many pixels a side.")]


@contextmanager
def _sentences(*more: type[Exception]) -> Iterator[None]:
    """What is given wrongly, or stops a run, is said in a sentence, without a traceback.

    Args:
        *more: kinds of errors that may be expected here beside the usual ones.
    """
    expected: tuple[type[Exception], ...] = (ValueError, FloatingPointError, OSError, SurgeryError, data.DatasetUnavailable, *more)
    try:
        yield
    except expected as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt as stop:
        typer.echo(str(stop) or "stopped", err=True)
        raise typer.Exit(130) from stop


def _images(name: str, root: Path | None, size: int | None, *, flip: bool = True) -> data.Images:
    with _sentences():
        return data.load(name, root, size=size, flip=flip)


def _build(net: str, images: data.Images | None, pretrained: str | None, channels: int = 3, classes: int = 10) -> nn.Module:
    """A network by its name, for the images at hand."""
    channels = channels if images is None else images.train.images.shape[1]
    classes = classes if images is None else len(images.classes)
    source, _, name = net.rpartition(":")
    with _sentences(ImportError, AttributeError):
        if source == "torchvision":
            return models.stock(name, pretrained=pretrained, num_classes=classes)
        if source and pretrained:
            raise ValueError(f"pretrained must name weights that come with the library, which has none for {net}, got {pretrained!r}: give --weights")
        if source:
            return _call(net, getattr(importlib.import_module(source), name))
        if name not in NAMES:
            raise ValueError(f"net must be {', '.join(NAMES)}, torchvision:NAME or module:function, got {net!r}")
        return models.NETS[name](pretrained=pretrained, in_channels=channels, classes=classes)


def _call(net: str, builder: Any) -> nn.Module:
    """What a function of the user's builds."""
    try:
        built = builder()
    except Exception as error:  # what user code may raise
        raise ValueError(f"net must name a function that builds a network without arguments, but {net!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"net must name a function that returns a torch.nn.Module, but {net!r} returned a {type(built).__name__}")
    return built


def _shipped(net: str, name: str) -> str | None:
    """The data set, if weights for the network that were trained on it come with the library."""
    return name if f"{net.removeprefix('torchvision:')}-{name}" in models.PRETRAINED else None


def _is_own(net: str) -> bool:
    """Whether the network is one of the user's, who alone knows what its weights are."""
    return ":" in net and not net.startswith("torchvision:")


def _note_weights(net: str, pretrained: str | None, images: data.Images) -> None:
    """Says what may surprise: no weights, or weights for images of another size."""
    if pretrained is None:
        typer.echo(f"note: no weights were named, so {f'they are as {net} returns them' if _is_own(net) else 'a network that was never trained is pruned'}")
        return
    card = json.loads((models.BUNDLED / f"{net.removeprefix('torchvision:')}-{pretrained}.json").read_text(encoding="utf-8"))
    side = images.train.images.shape[-1]
    if (trained := card.get("image size", side)) != side:
        typer.echo(f"note: the weights were trained on images of {trained} pixels a side, and these have {side}: --size {trained} fits them")


@app.command()
def prune(
    net: Net = "resnet20",
    name: Data = "cifar10",
    rate: Annotated[float, typer.Option(help="The share that goes, 0 to below 1.")] = 0.75,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    unit: Annotated[str, typer.Option(help="What the rate counts: params, macs, channels or latency (measured here).")] = "params",
    round_to: Annotated[int, typer.Option(help="Each group of channels keeps a multiple of this many, such as 8.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the pruned network goes: OUT.safetensors and OUT.json.")] = Path("pruned"),
    pretrained: Annotated[str | None, typer.Option(help="Shipped weights to start from; default: those of the data set, where there are any.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Or a file of yours: a state_dict, .safetensors or .pt.")] = None,
    root: Root = None,
    size: Size = None,
    flip: Annotated[bool, typer.Option(help="Whether a mirrored image is still of its class: not a digit.")] = True,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: the same network.")] = 0,
    mode: Annotated[str, typer.Option(help="How the network runs: fp32, fp32-channels-last, bf16-channels-last, or auto, the fastest here.")] = "auto",
    replay: Annotated[bool, typer.Option(help="Whether a GPU replays a recorded step.")] = True,
    checkpoint: Annotated[Path | None, typer.Option(help="A folder for a checkpoint each epoch.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A folder with a checkpoint to go on from.")] = None,
) -> None:
    """Prunes a pretrained network and fine-tunes it, in one run."""
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder of --out must exist, but there is no {out.parent}")
    images = _images(name, root, size, flip=flip)
    if pretrained is None and weights is None:
        pretrained = _shipped(net, name)
    torch.manual_seed(seed)  # weights that were never trained are the same when the run is resumed
    model = _build(net, images, pretrained)
    if weights is not None:
        _load_weights(model, weights)
    else:
        _note_weights(net, pretrained, images)
    _check_out(model, out)
    with _sentences():
        how: dict[str, Any] = {"lr": lr, "seed": seed, "mode": mode, "replay": replay, "checkpoint": checkpoint, "resume": resume}
        result = run_prune(model, images, rate, epochs=epochs, unit=unit, round_to=round_to, **how)
    typer.echo(result)
    _write(result.model, out, resume or checkpoint)


@app.command()
def evaluate(
    saved: Annotated[Path | None, typer.Option(help="A pruned network, as prune wrote it; default: the shipped weights.")] = None,
    net: Net = "resnet20",
    name: Data = "cifar10",
    root: Root = None,
    size: Size = None,
) -> None:
    """Measures accuracy on the test images, parameters, MACs and latency."""
    images = _images(name, root, size)
    if saved:
        model = _load_saved(saved, _build(net, images, None))
    else:
        pretrained = None if _is_own(net) else name
        model = _build(net, images, pretrained)
        _note_weights(net, pretrained, images)
    example = torch.zeros(1, *images.train.images.shape[1:])
    typer.echo(f"{net} on {images.note}: {measure.accuracy(model, images):.2%} of {len(images.test):,} test images")
    params, macs = measure.count_params(model), measure.count_macs(model, example)
    typer.echo(f"{params:,} parameters, {macs:,} MACs, {measure.latency(model, example)} an image on one thread")


@app.command()
def export(
    saved: Annotated[Path, typer.Option(help="A pruned network, as prune wrote it.")],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    net: Net = "resnet20",
    size: Annotated[int, typer.Option(help="Pixels a side of the images that it takes.")] = 32,
    channels: Annotated[int, typer.Option(help="3 for colour images, 1 for grey ones.")] = 3,
    classes: Annotated[int, typer.Option(help="How many classes it tells apart.")] = 10,
) -> None:
    """Writes a pruned network as ONNX, checked against ONNX Runtime (needs the extra 'export')."""
    model = _load_saved(saved, _build(net, None, None, channels, classes))
    with _sentences(ImportError, RuntimeError):
        difference = saving.export_onnx(model, out, torch.zeros(1, channels, size, size))
    typer.echo(f"written: {out}; ONNX Runtime differs by {difference:.1e}")


@app.command(name="data")
def show_data(name: Annotated[str, typer.Argument(help=f"One of {', '.join(data.SETS)}.")] = "cifar10", root: Root = None, size: Size = None) -> None:
    """Loads an image set, downloads it where it is missing, and says what is in it."""
    images = _images(name, root, size)
    for part, split in (("train", images.train), ("test", images.test)):
        typer.echo(f"{part}: {len(split):,} images of shape {list(split.images.shape[1:])}")
    typer.echo(f"{images.note}, {len(images.classes)} classes: {', '.join(images.classes[:10])}{' …' if len(images.classes) > 10 else ''}")


@app.command()
def grade(
    notebooks: Annotated[list[Path], typer.Argument(help="Handed-in notebooks of the book's assignment.", exists=True, dir_okay=False)],
    out: Annotated[Path | None, typer.Option(help="A CSV file for the table: a line for each task of each notebook.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for all cells of a notebook together.", min=1)] = 300,
    memory: Annotated[float, typer.Option(help="GiB that a notebook's process may take.", min=1)] = 4,
) -> None:
    """Marks handed-in notebooks, each in a process of its own (needs the extra 'book')."""
    from .teaching import grading  # brings Jupyter along

    rows = []
    for path in notebooks:
        try:
            found = grading.grade(path, timeout=timeout, memory=memory)
        except (ImportError, RuntimeError) as error:
            raise typer.BadParameter(f"no notebook can run here: {error}") from error
        typer.echo(grading.table(found))
        rows += found
    if out is not None:
        grading.write_table(rows, out)


@app.command()
def experiment(
    name: Annotated[str | None, typer.Argument(help="A recipe; --list names them.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Names the recipes.")] = False,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    out: Annotated[Path, typer.Option(help="The folder of NAME.json.")] = experiments.RESULTS,
    work: Annotated[Path | None, typer.Option(help="A folder for checkpoints and pruned networks; default: runs/NAME.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    scale: Annotated[float, typer.Option(help="The share of the epochs and of the training images, for a smaller machine.")] = 1.0,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; may be given several times.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="The checkpoint's folder of a bigger teacher; default: the weights that come along.")] = None,
    mode: Annotated[str, typer.Option(help="How the networks run: fp32, fp32-channels-last or bf16-channels-last.")] = experiments.MODE,
    root: Root = None,
) -> None:
    """Runs a recipe: trains a network, prunes it by every arm, and writes NAME.json. Killed, it goes on where it was."""
    if show or name is None:
        width = max(map(len, recipes.RECIPES))
        for key, recipe in recipes.RECIPES.items():
            typer.echo(f"{key:{width}}  {recipe}")
        return
    if threads is not None:
        torch.set_num_threads(threads)
    with _sentences():
        for line in experiments.run(name, seeds=seeds, out=out, work=work, scale=scale, arms=tuple(arm or ()), teacher=teacher, mode=mode, root=root):
            typer.echo(line)


def _check_out(model: nn.Module, out: Path) -> None:
    """Writes the network beside ``out`` and takes it away again: what cannot be written is better known before hours of training."""
    try:
        saving.paths(out)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".try-") as folder:
            saving.save(model, Path(folder) / out.name)
    except (ValueError, OSError, RuntimeError) as error:
        raise typer.BadParameter(f"a network must be one that can be written as {out}, but: {error}") from error


def _write(model: nn.Module, out: Path, folder: Path | None) -> None:
    """Writes the pruned network; where that fails, it says where the result still is."""
    try:
        saving.save(model, out)
    except (ValueError, OSError, RuntimeError) as error:
        kept = f"it is in the checkpoint, and --resume {folder} writes it" if folder else "it is lost, since --checkpoint named no folder"
        raise typer.BadParameter(f"the pruned network cannot be written as {out}: {error}; {kept}") from error
    typer.echo(f"written: {out}.safetensors, {out}.json")


def _load_saved(path: Path, model: nn.Module) -> nn.Module:
    with _sentences():
        return saving.load(path, model)


def _load_weights(model: nn.Module, path: Path) -> None:
    """A state_dict into the model: read without running what the file holds."""
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # a broken file can raise nearly anything
        raise typer.BadParameter(f"{path} must be a state_dict of the network, but: {error}") from error


if __name__ == "__main__":
    app()
