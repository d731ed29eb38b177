"""The rivals: each is another way to fill the score vector that ``prune`` starts from. Chapter 8.

Everything else stays the same, the teacher, the ramp, the epochs and the images, so that a comparison
says what the scores are worth:

    graph = sdap.trace(model, example)
    sdap.prune(model, images, 0.75, rule="frozen", cost_power=0, scores=baselines.l1(model, graph))
"""

from __future__ import annotations

import itertools
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .copies import copied, in_mode
from .gates import Gates
from .graph import ChannelGraph
from .images import Images, batches

__all__ = ["l1", "norm_scales", "random", "reinitialise", "taylor", "uniform"]


def norm_scales(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """Each channel's largest batch-norm scale: the scores of network slimming (Liu et al. 2017).

    It prunes only what has a scale: a channel without a batch norm gets the largest one found.

    Args:
        model: stays as it is.
        graph: of the model.

    Raises:
        ValueError: there are channels that may go, but none of them has a batch norm with a weight.
    """
    flat = torch.full((len(graph),), -1.0)  # below any scale
    for name, layer in graph.layers.items():
        module = model.get_submodule(name) if layer.kind == "norm" else None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            flat.scatter_reduce_(0, layer.outputs, module.weight.detach().abs().float().cpu(), "amax")
    found = flat[graph.removable]
    if len(found) and float(found.max()) < 0:
        raise ValueError("the model must have a batch norm with a weight on a channel that may go, to be scored by its scales, but has none: give scores=")
    return graph.split(torch.where(flat < 0, flat.max(), flat))


def l1(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """The sum of the absolute weights of each channel's filters, over all layers that give it (Li et al. 2017).

    >>> from sdap_lite import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 0.0]])[:, :, None, None])
    >>> l1(net, trace(net, torch.zeros(1, 3, 1, 1)))["0"].tolist()
    [3.0, 0.5]
    """
    flat = torch.zeros(len(graph))
    for layer in graph.layers.values():
        if layer.mixes or layer.kind == "depthwise":
            module = model.get_submodule(layer.name)
            weight = module.get_parameter("weight").detach().abs().float().cpu()
            if layer.transposed:  # [inputs, outputs of one part, …] -> [outputs, inputs of one part, …]
                weight = weight.unflatten(0, (int(module.groups), -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
            flat.index_add_(0, layer.outputs, weight.flatten(1).sum(1))
    return graph.split(flat)


def taylor(model: nn.Module, graph: ChannelGraph, images: Images, *, steps: int = 20, batch_size: int = 128, seed: int = 0) -> dict[str, Tensor]:
    """The root mean square of each gate's gradient, taken once, before pruning (Molchanov et al. 2019).

    It is what :class:`sdap_lite.RootMeanSquare` learns all along the ramp.

    Args:
        model: stays as it is; it runs in eval mode.
        graph: of the model.
        images: the set; its training part is used.
        steps: batches to average over, from 1 on, or as many as there are.
        batch_size: images a batch.
        seed: which images, and how they are augmented.

    Raises:
        ValueError: ``steps`` is no whole number from 1 on.
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps must be a whole number from 1 on, got {steps!r}")
    model = in_mode(copied(model), False)
    device = next(model.parameters()).device
    squares = []
    shuffled = batches(images.hold_out()[1], batch_size, images, shuffle=torch.Generator().manual_seed(seed))
    with Gates(graph).attach(model) as gates:
        for x, y in itertools.islice(shuffled, steps):
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x.to(device)), y.to(device)), gates.flat)
            squares.append(gradient.square())
    return graph.split(torch.stack(squares).mean(0).sqrt().cpu())


def random(graph: ChannelGraph, *, seed: int = 0) -> dict[str, Tensor]:
    """Numbers from 0 to 1: what any method must beat."""
    return graph.split(torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)))


def uniform(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same order within each group and the same share of each: a score becomes its rank, from 1/n to 1.

    Compare them with ``cost_power=0``.

    >>> uniform({"a": torch.tensor([5.0, 9.0]), "b": torch.tensor([0.3, 0.1, 0.4, 0.2])})
    {'a': tensor([0.5000, 1.0000]), 'b': tensor([0.7500, 0.2500, 1.0000, 0.5000])}
    """
    return {name: (values.argsort(stable=True).argsort() + 1) / len(values) for name, values in scores.items()}


def reinitialise(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy with random weights, to train the small architecture from scratch (Liu et al. 2019).

    Args:
        model: stays as it is; each of its modules that has parameters of its own must be able to reset them.
        seed: of the weights.

    Raises:
        ValueError: a module cannot.
    """
    fresh = copied(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ValueError(
                    f"each module with parameters must have reset_parameters(), but {name or 'the model itself'!r} ({type(module).__name__}) has none"
                )
    return fresh
