"""A pruned model on disk: weights as safetensors, widths as a JSON recipe; and ONNX. Chapter 6.

The recipe holds numbers and names only: nothing in it is run. It is loaded into the stock class,
whose layers are first cut to the recipe's widths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .checkpoint import is_sealed, sealed, write_atomically, write_together
from .checks import check_unwrapped
from .copies import copied, in_mode

__all__ = ["export_onnx", "load", "save"]

WIDTHS = tuple("in_channels out_channels groups in_features out_features num_features num_groups num_channels num_parameters before after".split())
STOCK = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)  # their widths say the shapes of their tensors


def save(model: nn.Module, path: str | Path) -> None:
    """Writes ``path.safetensors`` and ``path.json``.

    A tensor that the model has under several names, a tied weight for example, is written once. Buffers that are not persistent
    are written, too, since surgery may have cut them.

    Args:
        model: a plain model, pruned or not.
        path: without an ending; its folder must exist.

    Raises:
        ValueError: the model is none, is wrapped, or has gates or a state that is no tensor; or the folder does not exist.

    >>> import tempfile
    >>> from sdap_lite import models
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(models.resnet20(), f"{folder}/net")
    ...     again = load(f"{folder}/net", models.resnet20())
    >>> type(again).__name__
    'ResNet'
    """
    from safetensors.torch import save as to_bytes

    check_unwrapped(model)
    weights, recipe = paths(path)
    if not weights.parent.is_dir():
        raise ValueError(f"the folder must exist, but there is no {weights.parent}")
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise ValueError("the model must have no gates or other parametrizations: detach() them first")
    tied = _tied(model)
    state = {k: v.detach().cpu() for k, v in {**model.state_dict(), **_transient(model)}.items() if k not in tied}
    content = to_bytes({k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()})  # views of one storage would be refused
    modules = {name: {"class": type(m).__name__, **_widths(m)} for name, m in model.named_modules() if _widths(m)}
    card = {"format": "sdap_lite 1", "class": type(model).__name__, "sha256": hashlib.sha256(content).hexdigest(), "modules": modules}
    own = _own_shapes(model)
    card |= ({"parameters": own} if own else {}) | ({"tied": tied} if tied else {})
    text = json.dumps(sealed(card), indent=1) + "\n"
    write_together({weights: lambda file: Path(file).write_bytes(content), recipe: lambda file: Path(file).write_text(text)})


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A saved model again.

    Args:
        path: as given to :func:`save`.
        model: of the stock class, of any width, which ties the tensors that the saved one tied; it
            stays as it is.

    Returns:
        A new model with the saved widths and weights, in eval mode.

    Raises:
        ValueError: a file is missing, damaged or foreign, or does not fit the class; the model is none, is wrapped, or holds no numbers.
    """
    check_unwrapped(model)
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        raise ValueError("the model to load into must be on a device that holds numbers, got meta: build it outside of torch.device('meta')")
    weights, recipe = paths(path)
    card, content = _read_recipe(recipe), _read_weights(weights)
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise ValueError(f"{weights} must be the file that {recipe.name} was written with, but its checksum differs: it was damaged or exchanged")
    state = _read_state(weights, content)
    if card["class"] != type(model).__name__:
        raise ValueError(f"{recipe} is of class {card['class']}, but the model to load into is a {type(model).__name__}")
    model = copied(model)
    tied = _tied(model)
    state = _with_tied(recipe, card.get("tied", {}), tied, state)
    modules = {name: m for name, m in model.named_modules() if _widths(m)}
    if modules.keys() != card["modules"].keys():
        raise ValueError(f"{recipe} must name the model's layers, but these differ: {sorted(modules.keys() ^ card['modules'].keys())[:5]}")
    shapes = {path: card["parameters"][path] for path in _own_shapes(model).keys() & card.get("parameters", {}).keys()}
    for name, module in modules.items():
        _set_widths(name, module, card["modules"][name])
    wrong = _reshape(model, shapes, state)
    state = {name: tensor for name, tensor in state.items() if name not in _transient(model)}
    own = model.state_dict()
    wrong = wrong or sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise ValueError(f"{weights} must hold the model's tensors in the recipe's widths, but these differ: {wrong[:5]}")
    apart = [f"{name} and {first}" for name, first in tied.items() if not _same(state[name], state[first])]
    if apart:
        raise ValueError(f"{weights} must hold equal numbers for names that the model ties to one tensor, but these differ: {apart[:5]}")
    model.load_state_dict(state)
    return in_mode(model, False)


def export_onnx(model: nn.Module, path: str | Path, example: Tensor) -> float:
    """Writes the model as ONNX, any batch size, and compares it with ONNX Runtime.

    Args:
        model: a plain model.
        path: of the file to write.
        example: an input, shape [batch, channels, height, width].

    Returns:
        The largest difference between the two on a random input; at most 1e-4, relative where the
        numbers are above 1.

    Raises:
        ModuleNotFoundError: the extra ``export`` is not installed.
        ValueError: the model is none, is wrapped, or gives more than one tensor; or the folder does not exist.
        RuntimeError: ONNX Runtime computes something else.
    """
    import onnxruntime

    check_unwrapped(model)
    if not Path(path).parent.is_dir():
        raise ValueError(f"the folder must exist, but there is no {Path(path).parent}")
    model = in_mode(copied(model).cpu().float(), False)
    x = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not isinstance(given := model(x), Tensor):
            raise ValueError(f"the model must give one tensor in eval mode, to be compared with ONNX Runtime's, got {type(given).__name__}")
    dynamic = {"x": {0: torch.export.Dim("batch")}} if _first_argument(model) == "x" else ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert program is not None

    def write(file: str) -> None:
        program.save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            wanted = model(x)
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        difference.append(float((wanted - got).abs().max()) / max(1.0, float(wanted.abs().max())))
        if not difference[0] <= 1e-4:
            raise RuntimeError(f"ONNX Runtime must compute what the model computes, but differs by {difference[0]:.2e}")

    difference: list[float] = []
    write_atomically(Path(path), write)
    return difference[0]


# ---------------------------------------------------------------------------------------------


def paths(path: str | Path) -> tuple[Path, Path]:
    """Where a network of this name lies: its weights and its recipe.

    Raises:
        ValueError: the name is none.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise ValueError(f"path must name a file, without an ending, got {str(path)!r}")
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def _widths(module: nn.Module) -> dict[str, int]:
    """A module's channel counts, where it has any; not those that it computes from its tensors, which cannot be set."""
    rules = {key: getattr(type(module), key, None) for key in WIDTHS}
    settable = [key for key, rule in rules.items() if not (isinstance(rule, property) and rule.fset is None)]
    return {key: getattr(module, key) for key in settable if type(getattr(module, key, None)) is int}


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of tensors that have another name before: each with its tensor's first name."""
    first: dict[Tensor, str] = {}
    state = model.state_dict(keep_vars=True)
    if strange := {name: type(value).__name__ for name, value in state.items() if not isinstance(value, Tensor)}:
        name, kind = next(iter(strange.items()))
        raise ValueError(f"the model's state must be tensors, but {name!r} is a {kind}: take get_extra_state out of the class")
    return {name: first[tensor] for name, tensor in state.items() if first.setdefault(tensor, name) != name}


def _transient(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dictionary leaves out, of the types that safetensors knows."""
    persistent = model.state_dict().keys()
    return {path: tensor for path, _, _, tensor in _tensors(model) if path not in persistent and tensor.dtype != torch.complex128}


def _with_tied(recipe: Path, saved: dict[str, str], tied: dict[str, str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the names that were not written; only where the model has one tensor too, or a small file could ask for many."""
    apart = [f"{name} and {first}" for name, first in saved.items() if tied.get(name, name) != tied.get(first, first)]
    if apart:
        raise ValueError(f"the model to load into must tie what {recipe} ties, but has two tensors for {apart[:5]}")
    return {name: state[first] for name, first in saved.items() if first in state} | state


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """All parameters and buffers: path, module, name, tensor."""
    for path, module in model.named_modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        for key, tensor in [*parameters, *module.named_buffers(recurse=False, remove_duplicate=False)]:
            yield f"{path}.{key}".lstrip("."), module, key, tensor


def _implied(module: Any, key: str, tensor: Tensor) -> list[int] | None:
    """The shape that a module's widths give its tensor, if they say one."""
    if isinstance(module, nn.Linear):
        return {"weight": [module.out_features, module.in_features], "bias": [module.out_features]}.get(key)
    if isinstance(module, nn.modules.conv._ConvNd):
        inside, outside = module.in_channels // module.groups, module.out_channels // module.groups
        ends = [module.in_channels, outside] if module.transposed else [module.out_channels, inside]
        return {"weight": [*ends, *tensor.shape[2:]], "bias": [module.out_channels]}.get(key)
    # A norm; or a user's layer with the attributes of one, since earlier recipes do not hold its shapes.
    widths = _widths(module)
    width = widths.get("num_features", widths.get("num_channels", widths.get("num_parameters")))
    is_line = tensor.ndim == 1 and key in ("weight", "bias", "running_mean", "running_var")
    return [width] if is_line and width is not None else None


def _own_shapes(model: nn.Module) -> dict[str, list[int]]:
    """The shapes that no stock layer's widths say: of a layer scale, of a user's own layer, of what a subclass adds."""
    return {
        path: list(tensor.shape)
        for path, module, key, tensor in _tensors(model)
        if tensor.ndim and not (isinstance(module, STOCK) and list(tensor.shape) == _implied(module, key, tensor))
    }


def _reshape(model: nn.Module, shapes: dict[str, Any], state: dict[str, Tensor]) -> list[str]:
    """Gives each tensor the recipe's shape, where the state has it in the same; returns the names of those where it has not."""
    wrong, persistent = [], model.state_dict().keys()
    made: dict[Tensor, Tensor] = {}  # tied tensors stay tied
    for path, module, key, old in _tensors(model):
        if path not in persistent:
            if path in state:  # not so in recipes of earlier versions
                setattr(module, key, state[path].to(old))
            continue
        shape = shapes.get(path, _implied(module, key, old) or list(old.shape))
        if path not in state or list(state[path].shape) != shape or len(shape) != old.ndim:
            wrong.append(path)  # and nothing is made: a recipe alone must not ask for memory
        elif shape != list(old.shape):
            if old not in made:
                new = torch.zeros(shape, dtype=old.dtype, device=old.device)
                made[old] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(module, key, made[old])
    return wrong


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a recipe, but cannot be read as one: {error}") from error
    if not isinstance(card, dict) or card.get("format") != "sdap_lite 1" or not {"class", "sha256", "modules", "checksum"} <= card.keys():
        raise ValueError(f"{path} must be a recipe in the format 'sdap_lite 1', got {card.get('format') if isinstance(card, dict) else card!r}")
    if not is_sealed(card):
        raise ValueError(f"{path} must be as it was written, but its checksum differs: it was damaged or changed by hand")
    if not isinstance(card["modules"], dict) or not all(isinstance(m, dict) for m in card["modules"].values()):
        raise ValueError(f"{path} must hold the widths of each module")
    tied = card.get("tied", {})
    if not isinstance(card.get("parameters", {}), dict) or not isinstance(tied, dict) or not all(isinstance(first, str) for first in tied.values()):
        raise ValueError(f"{path} must hold shapes and ties by the tensors' names")
    return card


def _read_weights(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} must be the model's weights, but cannot be read: {error}") from error


def _read_state(path: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, but cannot be read as one: {error}") from error


def _set_widths(name: str, module: Any, wanted: dict[str, Any]) -> None:
    """Gives a module the recipe's widths; its tensors stay as they are."""
    found = {"class": type(module).__name__, **_widths(module)}
    if found.keys() != wanted.keys() or found["class"] != wanted["class"]:
        raise ValueError(f"module {name!r} must be a {wanted.get('class')} as in the recipe, but the model's is a {found['class']}")
    for key in found.keys() - {"class"}:
        least = 0 if key in ("before", "after") else 1
        if type(wanted[key]) is not int or not least <= wanted[key] <= 2**20:
            raise ValueError(f"module {name!r}: {key} must be a whole number from {least} on, got {wanted[key]!r}")
        setattr(module, key, wanted[key])
    if isinstance(module, nn.modules.conv._ConvNd) and (module.in_channels % module.groups or module.out_channels % module.groups):
        raise ValueError(f"module {name!r}: groups must divide the channels, got {module.groups} of {module.in_channels} and {module.out_channels}")


def _first_argument(model: nn.Module) -> str:
    import inspect

    return next(iter(inspect.signature(model.forward).parameters))
