"""The marked assignment: a ResNet-20 on fashion-mini, counted, traced, pruned and reported.

Its tasks are entered among the exercises as A.1 to A.8, with points. Their answers are numbers,
texts and tensors, so that they can be taken out of a handed-in notebook as data
(``grading.py``). ``book/assignment.ipynb`` sets the tasks, the lecturer's page has the rubric.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import data
from ..budget import cost, threshold
from ..channels import trace
from ..gates import Gates
from ..graph import ChannelGraph
from ..measure import accuracy, count_macs, count_params, predict
from ..models import ResNet, resnet20
from ..surgery import masked, remove_channels
from .comparing import compare, exercise

__all__ = ["BY_HAND", "LOSS", "RATE"]

RATE = 0.6  # the share of the parameters that must go
LOSS = 0.05  # the share of the test images that the pruned network may lose
BY_HAND = {"A.9": 5}  # what no program marks, and its points


@cache
def _images() -> data.Images:
    return data.load("fashion-mini")


def _model() -> ResNet:
    return resnet20(pretrained="fashion-mini").eval()


@cache
def _graph() -> ChannelGraph:
    return trace(_model(), torch.zeros(1, 1, 28, 28))


def _missing(answer: Any, *keys: str) -> str | None:
    """What is wrong with an answer that must be a dictionary with some keys."""
    if not isinstance(answer, dict):
        return f"the answer must be a dictionary with {', '.join(map(repr, keys))}, got a {type(answer).__name__}"
    absent = [key for key in keys if key not in answer]
    return f"the dictionary must have {', '.join(map(repr, keys))}; missing: {', '.join(map(repr, absent))}" if absent else None


@exercise("A.1", "sdap.count_params(model) and sdap.count_macs(model, example), with one grey image of 28 × 28 pixels.", points=1)
def costs(answer: Any) -> str | None:
    """Parameters and MACs of the dense network."""
    wrong = _missing(answer, "params", "macs")
    if wrong:
        return wrong
    params, macs = count_params(_model()), count_macs(_model(), torch.zeros(1, 1, 28, 28))
    mistakes = {
        "these are FLOPs: one MAC is two of them": (params, 2 * macs),
        "the images have 28 × 28 pixels, not 32 × 32": (params, count_macs(_model(), torch.zeros(1, 1, 32, 32))),
        "the images are grey: the first layer reads one channel, not three": (count_params(resnet20()), count_macs(resnet20(), torch.zeros(1, 3, 28, 28))),
    }
    return compare((answer["params"], answer["macs"]), (params, macs), mistakes, tolerance=1e-9)


@exercise("A.2", "A layer writes the channels in graph.layers[name].outputs; the group has those from start to stop - 1.", points=2)
def tied(answer: Any) -> str | None:
    """The convolutions that write the channels of the largest group."""
    if not isinstance(answer, list) or not all(isinstance(name, str) for name in answer):
        return f"the answer must be a list of layers' names, got a {type(answer).__name__}"
    group, graph = _graph().groups["conv1"], _graph()
    unknown = [name for name in answer if name not in graph.layers]
    if unknown:
        return f"there is no layer {unknown[0]!r}"
    writers = {name for name, layer in graph.layers.items() if layer.kind == "conv" and group.start <= int(layer.outputs[0]) < group.stop}
    missing, other = len(writers - set(answer)), len(set(answer) - writers)
    if not missing and not other:
        return None
    return f"{missing} convolutions that write the group are missing, and {other} of those named are no convolution that does"


@exercise("A.3", "with sdap.Gates(graph).attach(model.eval()) as gates: the mean cross-entropy, backward(), then gates.gradient.", points=3)
def gate_gradients(answer: Any) -> str | None:
    """The gates' gradients on 200 validation images."""
    wrong = _missing(answer, *_graph().prunable)
    if wrong:
        return wrong
    right = _gradients(_images(), training=False)
    mistakes = {
        "the network must be in eval mode": _gradients(_images(), training=True),
        "the sum over the images: take their mean": 200 * right,
        "the gradient has a sign: these are absolute values": right.abs(),
        "these are squares": right.square(),
    }
    return compare(_graph().join(answer, 0.0), right, mistakes, tolerance=1e-2)


@cache  # for a whole class of notebooks
def _gradients(images: data.Images, *, training: bool) -> Tensor:
    x, y = next(data.batches(images.hold_out()[0][:200], 200, images))
    model = _model().train(training)
    with Gates(_graph()).attach(model) as gates:
        F.cross_entropy(model(x), y).backward()
    return _graph().join(gates.gradient, 0.0)


@cache
def _dense_logits(images: data.Images) -> Tensor:
    return predict(_model(), images.test, images)


@exercise("A.4", "sdap.threshold(graph, scores, 0.6, cost_power=0, fill=False)", points=2)
def one_rate(answer: Any) -> str | None:
    """The masks that one threshold on made-up scores gives."""
    wrong = _missing(answer, *_graph().prunable)
    if wrong:
        return wrong
    graph = _graph()
    scores = graph.split((12.9898 * torch.arange(len(graph))).sin().abs())

    def masks(rate: float = RATE, **options: Any) -> Tensor:
        return graph.join(threshold(graph, scores, rate, **{"cost_power": 0, "fill": False, **options}), True)

    right = masks()
    mistakes = {
        "True must mean that a channel stays: these masks are the other way round": ~right | ~graph.removable,
        "the rate is the share that goes: these masks keep 60 %": masks(1 - RATE),
        "the rate must be one of the parameters, not of the channels": masks(unit="channels"),
        "the rate must be one of the parameters, not of the MACs": masks(unit="macs"),
        "scores must be compared as they are: cost_power=0": masks(cost_power=0.5),
        "no channel below the threshold may stay: fill=False": masks(fill=True),
        "scores must be compared as they are, and no channel below the threshold may stay: cost_power=0, fill=False": masks(cost_power=0.5, fill=True),
    }
    return compare(graph.join(answer, True), right, mistakes)


@exercise("A.5", "sdap.remove_channels(model, graph, kept).state_dict()", points=2)
def cut_out(answer: Any) -> str | None:
    """The state_dict of the network that keeps every second channel."""
    kept = {name: torch.arange(len(group)) % 2 == 0 for name, group in _graph().prunable.items()}
    right = remove_channels(_model(), _graph(), kept, check=False).state_dict()
    wrong = _missing(answer, *right)
    if wrong:
        return wrong
    large, odd = masked(_model(), _graph(), kept).state_dict(), remove_channels(_model(), _graph(), {name: ~mask for name, mask in kept.items()}, check=False)
    if all(compare(answer[key], large[key]) is None for key in right):
        return "this is the masked network: its channels are closed, but not cut out"
    for key, tensor in right.items():
        differs = compare(answer[key], tensor, {"the even channels stay, 0, 2, 4 …, not the odd ones": odd.state_dict()[key]})
        if differs:
            return f"{key}: {differs}"
    return None


def _small(answer: Any) -> ResNet:
    """The pruned network, rebuilt here from masks and weights.

    Raises:
        ValueError: they fit no network.
    """
    wrong = _missing(answer, "kept", "state") or _missing(answer["kept"], *_graph().prunable) or _missing(answer["state"], "conv1.weight")
    if wrong:
        raise ValueError(wrong)
    small: Any = remove_channels(_model(), _graph(), answer["kept"], check=False)
    try:
        small.load_state_dict(answer["state"])
    except RuntimeError as error:
        raise ValueError(f"the weights must be those of the network with the kept channels: {str(error).splitlines()[-1].strip()}") from error
    return small.eval()


def _right(logits: Tensor) -> float:
    return float((logits.argmax(1) == _images().test.labels).double().mean())


@exercise(
    "A.6", "result = sdap.prune(model, images, 0.6, epochs=2); result.kept and result.model.state_dict(). More images or epochs bring accuracy back.", points=4
)
def one_run(answer: Any) -> str | None:
    """A pruned network: small enough, and good enough on the test images."""
    small = _small(answer)
    gone = 1 - count_params(small) / cost(_graph())
    if gone < RATE:
        return f"{RATE:.0%} of the parameters must go, but {gone:.1%} are gone"
    dense, pruned = _right(_dense_logits(_images())), _right(predict(small, _images().test, _images()))
    return None if pruned >= dense - LOSS else f"at most {100 * LOSS:.0f} points of test accuracy may be lost, but it falls from {dense:.1%} to {pruned:.1%}"


@exercise("A.7", "sdap.accuracy(model, images) and the same for the pruned network: shares from 0 to 1 of all 2,000 test images.", points=3)
def report(answer: Any) -> str | None:
    """The test accuracy of both networks, as they are."""
    wrong = _missing(answer, "kept", "state", "dense", "small")
    if wrong:
        return wrong
    small, images = _small(answer), _images()
    right = _right(_dense_logits(images)), _right(predict(small, images.test, images))
    validation = tuple(accuracy(net, images, split=images.hold_out()[0]) for net in (_model(), small))
    mistakes = {
        "as shares from 0 to 1, not in per cent": tuple(100 * r for r in right),
        "this is the accuracy on validation images": validation,
    }
    return compare((answer["dense"], answer["small"]), right, mistakes, tolerance=2e-3)


@exercise("A.8", "With sdap.measure.predict for the logits: F.kl_div(log_softmax(z_s / 4), softmax(z_t / 4), reduction='batchmean').", points=3)
def divergence(answer: Any) -> str | None:
    """How far the pruned network's soft answers are from the dense one's, at T = 4."""
    wrong = _missing(answer, "kept", "state", "divergence")
    if wrong:
        return wrong
    z_t, z_s = _dense_logits(_images()), predict(_small(answer), _images().test, _images())

    def mean(first: Tensor, second: Tensor, T: float = 4) -> float:
        return float(F.kl_div(F.log_softmax(second / T, 1), F.log_softmax(first / T, 1), reduction="batchmean", log_target=True))

    right = mean(z_t, z_s)
    mistakes = {
        "the divergence itself, without the factor T²": 16 * right,
        "the mean over the images, not over the classes too: reduction='batchmean'": right / 10,
        "the teacher's answer comes first: KL(p_t || p_s)": mean(z_s, z_t),
        "soften both answers: divide the logits by T = 4": mean(z_t, z_s, 1),
    }
    return compare(answer["divergence"], right, mistakes, tolerance=1e-2)
