"""A pruned network is a plain module: whatever PyTorch does with a module, it does with this one."""

from __future__ import annotations

import copy
import io
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from nets import pictures, some_kept
from torch import Tensor, distributed, nn

from sdap_lite import _torchvision, count_params, load, masked, prune, remove_channels, save, trace

models = _torchvision.load().models
INPUT = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def dense(name: str) -> nn.Module:
    model = models.get_model(name, weights=None, num_classes=5)
    for m in model.modules():  # a new norm's zeros and ones would hide a mistake
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.weight, m.bias, m.running_mean, m.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


@pytest.fixture(params=["resnet18", "mobilenet_v2"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def small(name: str) -> nn.Module:
    """A stock network of torchvision, half of its channels gone."""
    model = dense(name)
    graph = trace(model, INPUT)
    return remove_channels(model, graph, some_kept(graph, 0))


def assert_same(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    got, wanted = got.detach(), wanted.detach()
    assert wanted.std() > 1e-3, "a constant would prove nothing"
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_export(small: nn.Module) -> None:
    assert_same(torch.export.export(small, (INPUT,)).module()(INPUT), small(INPUT))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorch's own compiler
def test_compile() -> None:
    model = dense("resnet18")
    graph = trace(model, INPUT)
    small = remove_channels(model, graph, some_kept(graph, 0))
    assert_same(torch.compile(small)(INPUT), small(INPUT))


def test_deepcopy(small: nn.Module) -> None:
    copied = copy.deepcopy(small)
    assert torch.equal(copied(INPUT), small(INPUT))
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in small.parameters()}


def test_state_dict_loads_without_code(small: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    empty = copy.deepcopy(small)
    nn.init.zeros_(next(empty.parameters()))
    empty.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(empty(INPUT), small(INPUT))


def test_loads_into_the_stock_class(name: str, small: nn.Module, tmp_path: os.PathLike[str]) -> None:
    save(small, f"{tmp_path}/small")
    assert torch.equal(load(f"{tmp_path}/small", dense(name))(INPUT), small(INPUT))


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed(small: nn.Module) -> None:
    alone, wrapped = copy.deepcopy(small), nn.parallel.DistributedDataParallel(small)
    for model in (alone, wrapped):
        model(INPUT).square().sum().backward()
    for a, b in zip(alone.parameters(), wrapped.module.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated", "ignore:.*quantize", "ignore:.*qint8", "ignore:must run observer")
def test_dynamic_quantisation(small: nn.Module) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8)
    kinds = {type(m).__module__ for m in quantised.modules()}
    assert any("quantized" in kind for kind in kinds)
    assert_same(quantised(INPUT), small(INPUT), tolerance=0.05)


def test_pruned_again(small: nn.Module) -> None:
    exact = small.double()
    graph = trace(exact, INPUT.double())
    kept = some_kept(graph, 0)
    smaller = remove_channels(exact, graph, kept)
    assert count_params(smaller) < count_params(exact)
    assert_same(smaller(INPUT.double()), masked(exact, graph, kept)(INPUT.double()), tolerance=1e-10)


def test_result_of_a_run_is_pruned_again() -> None:
    images = pictures(size=32)
    model = dense("resnet18")
    model.fc = nn.Linear(512, len(images.classes))
    once = prune(model, images, 0.5, epochs=1, mode="fp32", progress=False)
    twice = prune(once.model, images, 0.5, epochs=1, mode="fp32", progress=False)
    assert twice.report is not None
    assert 0.5 <= twice.report.achieved() < 0.55
    assert count_params(twice.model) < 0.28 * count_params(model)
