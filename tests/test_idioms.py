"""What the code of real networks does on the way: it keeps activations, asks for types, sets its own attributes, forgets to return itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import EXAMPLE, QUICK, cut_like_masked, pictures, randomize, some_kept
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import SurgeryError, TraceError, count_macs, masked, remove_channels, trace

IS_TENSOR = torch.is_tensor  # a trace asks in its place, and puts it back


class Idiom(nn.Module):
    """Two convolutions and a classifier, with something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def mid(self, x: Tensor) -> Any:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.b(self.mid(self.a(x).relu())).relu().mean((2, 3)))


class KeepsActivations(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        self.features, self.pyramid, self.named = x, [x, (x.relu(),)], {"last": x}
        self.named["all"] = self.named  # type: ignore[assignment]
        return x


class TensorOrList(Idiom):
    """As necks of detectors have it; the branch for a tensor mixes channels."""

    def mid(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x
        return [part * 1 for part in x]


class AssertsATensor(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        assert isinstance(x, (torch.Tensor, list))
        return x


class AsksForTheType(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        return x if x.dtype in (torch.float32, torch.float64) and x.is_floating_point() else x.float()


class AsksTorch(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        assert torch.is_tensor(x)
        return x + torch.finfo(x.dtype).eps * torch.finfo(type=x.dtype).eps * torch.finfo(type=torch.float32).eps


class AsksForTheDevice(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        return x if x.device == self.a.weight.device else x.to(self.a.weight.device)


class NumpyOfSizes(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        return x / float(np.sqrt(x.shape[2] * x.shape[3]))


class AutocastOff(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return x * 2


class OwnBatchNorm(nn.Module):
    """As textbooks write it: running statistics are assigned in the forward pass."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True)
            self.mean, self.var = 0.9 * self.mean + 0.1 * mean.detach(), 0.9 * self.var + 0.1 * var.detach()
        return self.gamma * (x - mean) / torch.sqrt(var + 1e-5) + self.beta


class WithOwnBatchNorm(Idiom):
    def __init__(self) -> None:
        super().__init__()
        self.norm = OwnBatchNorm(8)

    def mid(self, x: Tensor) -> Tensor:
        return self.norm(x)


class MadeWhenFirstNeeded(Idiom):
    grid: Tensor | None = None

    def mid(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[3])
        return x + self.grid.to(x.dtype)


class AddsNoise(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class InDataParallel(Idiom):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.DataParallel(self.a)  # type: ignore[assignment]


class TrainReturnsNothing(Idiom):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.a.eval()


IDIOMS: list[Callable[[], Idiom]] = [
    KeepsActivations,
    TensorOrList,
    AssertsATensor,
    AsksForTheType,
    AsksTorch,
    AsksForTheDevice,
    NumpyOfSizes,
    AutocastOff,
    WithOwnBatchNorm,
    MadeWhenFirstNeeded,
    AddsNoise,
    InDataParallel,
    TrainReturnsNothing,
]


@pytest.fixture(params=IDIOMS, ids=lambda kind: kind.__name__)
def idiom(request: pytest.FixtureRequest) -> nn.Module:
    net = randomize(request.param(), 0)
    net.eval()
    return net


def test_all_channels_may_go_and_surgery_is_exact(idiom: nn.Module) -> None:
    graph = trace(idiom, EXAMPLE)
    assert sum(len(group) for group in graph.prunable.values()) == 16
    assert sdap.cost(graph, unit="macs") == count_macs(idiom, EXAMPLE)
    idiom.double()
    cut_like_masked(idiom, graph, some_kept(graph, 0))


def test_trace_leaves_the_modules_as_they_were(idiom: nn.Module) -> None:
    held = [{name: id(value) for name, value in vars(module).items()} for module in idiom.modules()]
    tensors = {name: id(tensor) for name, tensor in [*idiom.named_parameters(), *idiom.named_buffers()]}
    trace(idiom, EXAMPLE)
    assert [{name: id(value) for name, value in vars(module).items()} for module in idiom.modules()] == held
    assert {name: id(tensor) for name, tensor in [*idiom.named_parameters(), *idiom.named_buffers()]} == tensors
    assert "isinstance" not in globals(), "what the trace puts there is taken away again"


def test_run_prunes_it(idiom: nn.Module) -> None:
    result = sdap.prune(idiom, pictures(), 0.3, **{**QUICK, "epochs": 3})  # the ramp ends in the middle of an epoch
    assert result.report is not None
    assert result.report.achieved() >= 0.3
    assert isinstance(result.model, nn.Module)
    assert not result.model.training


def test_history_of_a_kept_activation_is_no_obstacle() -> None:
    net = randomize(KeepsActivations(), 0)
    net(EXAMPLE).sum().backward()
    assert net.features.grad_fn is not None
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    for other in (remove_channels(net, graph, kept), masked(net, graph, kept)):
        assert other.features is not net.features
        assert not other.features.requires_grad
    assert net.features.grad_fn is not None, "the model keeps its own"


class AssignsAPart(Idiom):
    def mid(self, x: Tensor) -> Tensor:
        x[:, :, 0] = 0
        return x


def test_assignment_to_a_part_names_the_way_out() -> None:
    with pytest.raises(TraceError, match=r"assigns to a part of a tensor, x\[...\] = y, cannot be written down: make a new one, by torch.where, masked_fill"):
        trace(AssignsAPart(), EXAMPLE)
    assert torch.is_tensor is IS_TENSOR


class RootOfTheInput(Idiom):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x**0.5)


def test_check_looks_at_numbers_that_are_some() -> None:
    """Random inputs below 0 give NaN alone, which equals NaN: so it asks again from 0 to 1."""
    net = randomize(RootOfTheInput(), 0).double().eval()
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    wrong = remove_channels(net, graph, kept)
    with torch.no_grad():
        wrong.get_submodule("b").weight.mul_(1.01)
    flat = graph.join(kept, True)
    sdap.surgery._compare(net, small, graph, flat)
    with pytest.raises(SurgeryError, match="differs first at 'b'"):
        sdap.surgery._compare(net, wrong, graph, flat)


def test_check_that_can_prove_nothing_says_so() -> None:
    net = randomize(Idiom(), 0).eval()
    with torch.no_grad():
        net.get_parameter("fc.bias").fill_(math.nan)
    graph = trace(net, EXAMPLE)
    with pytest.raises(SurgeryError, match="the check must see finite numbers to prove anything, but the model's outputs on random inputs are NaN or infinite"):
        remove_channels(net, graph, some_kept(graph, 0))
