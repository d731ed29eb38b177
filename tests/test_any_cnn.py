"""Every CNN of torchvision: traced in seconds, mostly removable, and exact for random channels.

The oracle multiplies the inputs of each convolution and linear layer in hooks (``nets.hooked``) and
never calls the library's masks. So that all 68 classifiers fit into a few minutes and gigabytes,
nets are built without initialisation, get cheap numbers, and see small images.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from nets import hooked, some_kept
from torch import Tensor, nn

from sdap_lite import ChannelGraph, TraceError, _torchvision, cost, count_params, largest_rate, remove_channels, trace

models = _torchvision.load().models
CLASSIFIERS = [n for n in models.list_models(module=models) if not n.startswith(("vit", "swin", "maxvit"))]
SEGMENTERS = models.list_models(module=models.segmentation)
HEADS = {"inception_v3": 75}  # Inception's second head needs this many pixels
SIZE = 33  # odd, so that no two axes are alike; some nets need more


@pytest.fixture(autouse=True)
def no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers for half a billion weights take longer than all that is tested."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_", "constant_", "xavier_uniform_", "ones_", "zeros_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def filled(model: nn.Module) -> nn.Module:
    """The model in float64, with numbers that keep the signal alive: cut from one pool, which is quick."""
    pool = torch.rand(10007, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for i, (_, tensor) in enumerate(tensors):
        if tensor.is_floating_point():
            count = tensor.numel()
            numbers = pool.roll(101 * i).repeat(-(-count // len(pool)))[:count].view(tensor.shape)
            weight = tensor.ndim > 1 and tensor[0].numel() > 1
            tensor.data = numbers.sub_(0.5).mul_((14 / tensor[0].numel()) ** 0.5) if weight else numbers.add_(0.5)
    return model.eval()


def build(name: str, module: object = models, **settings: object) -> nn.Module:
    aux = {"aux_logits": settings.pop("aux", False)} if name in ("googlenet", "inception_v3") else {}
    weights = {"weights_backbone": None} if module is not models else ({"init_weights": False} if aux else {})
    return models.get_model(name, weights=None, num_classes=7, **weights, **aux, **settings).eval()


def size_of(name: str) -> int:
    return HEADS.get(name, 64 if name.startswith(("alexnet", "densenet", "squeezenet", "convnext", "vgg")) else SIZE)


def outputs(value: Tensor | dict[str, Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.values() if isinstance(value, dict) else value)


def assert_exact(model: nn.Module, graph: ChannelGraph, seed: int, share: float, size: int) -> None:
    kept = some_kept(graph, seed, share)
    small = remove_channels(model, graph, kept, check=False)
    assert count_params(small) == cost(graph, kept)
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = outputs(small(x))
        with hooked(model, graph, graph.join(kept, True)):
            wanted = outputs(model(x))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert float(b.std()) > 1e-6, "the output must tell the images and classes apart"
        assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_torchvision_classifier(name: str) -> None:
    model, size = build(name), size_of(name)
    start = time.process_time()
    graph = trace(model, torch.zeros(1, 3, size, size))
    assert time.process_time() - start < 10, "no torchvision CNN takes longer to trace on one core"
    assert largest_rate(graph) > 0.5, graph
    reasons = {note.reason for note in graph.kept}
    assert reasons == {"the network's output", *(["it normalizes over all channels"] if name.startswith("convnext") else [])}
    filled(model)
    for seed, share in enumerate((0.5, 0.3, 0.1)):
        assert_exact(model, graph, seed, share, size)


def test_there_are_68_of_them() -> None:
    assert len(CLASSIFIERS) >= 68


@pytest.mark.parametrize("name", SEGMENTERS)
def test_torchvision_segmentation(name: str) -> None:
    model = build(name, models.segmentation)
    graph = trace(model, torch.zeros(1, 3, SIZE, SIZE))
    assert largest_rate(graph) > 0.9, graph
    filled(model)
    for seed, share in enumerate((0.5, 0.3, 0.1)):
        assert_exact(model, graph, seed, share, SIZE)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_heads_that_exist_in_training_only_are_cut_along(name: str, size: int) -> None:
    model = build(name, aux=True)
    graph = trace(model, torch.zeros(1, 3, size, size))
    assert {note.reason for note in graph.kept} == {"the network's output"}
    assert any(layer.startswith(("aux1", "AuxLogits")) for layer in graph.prunable)
    filled(model)
    for module in model.modules():  # train mode, but without chance and with the running statistics
        module.training = not isinstance(module, (nn.BatchNorm2d, nn.Dropout))
    if name == "inception_v3":
        model = model.to(torch.float64)
    assert len(outputs(model(torch.zeros(2, 3, size, size, dtype=torch.float64)))) > 1
    assert_exact(model, graph, 0, 0.3, size)


def test_head_that_cannot_run_on_the_example_keeps_what_it_reads() -> None:
    model = build("inception_v3", aux=True)
    graph = trace(model, torch.zeros(1, 3, 96, 96))
    assert any(note.reason == "it runs in training only, and cannot run on this example" for note in graph.kept)
    filled(model)
    assert_exact(model, graph, 0, 0.3, 96)
    small = remove_channels(model, graph, some_kept(graph, 0, 0.3), check=False)
    for module in small.modules():
        module.training = not isinstance(module, (nn.BatchNorm2d, nn.Dropout))
    assert len(outputs(small(torch.zeros(2, 3, 299, 299, dtype=torch.float64)))) == 2


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "convnext_tiny", "regnet_y_400mf", "mobilenet_v3_small", "efficientnet_b0"])
def test_removal_checks_itself_and_the_result_can_be_pruned_again(name: str) -> None:
    model, size = filled(build(name)), size_of(name)
    graph = trace(model, torch.zeros(1, 3, size, size))
    small = remove_channels(model, graph, some_kept(graph, 0, 0.5))
    again = trace(small, torch.zeros(1, 3, size, size))
    assert cost(again) == count_params(small)
    assert_exact(small, again, 1, 0.5, size)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # Torch-Pruning's own
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_y_400mf", "efficientnet_b0", "squeezenet1_1", "densenet121"])
def test_torch_pruning_agrees(name: str) -> None:
    """Where it is right, it is a second oracle: the same channels by its own groups leave the same widths."""
    tp = pytest.importorskip("torch_pruning")
    model, size = filled(build(name)), size_of(name)
    graph = trace(model, torch.zeros(1, 3, size, size))
    kept = some_kept(graph, 0, 0.6)
    small = remove_channels(model, graph, kept, check=False)
    pruning: dict[type, Callable[..., object]] = {nn.Conv2d: tp.prune_conv_out_channels, nn.Linear: tp.prune_linear_out_channels}
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(1, 3, size, size, dtype=torch.float64))
    for group, bits in kept.items():
        gone = (~bits).nonzero().flatten() + graph.groups[group].start
        rows = torch.isin(graph.layers[group].outputs, gone).nonzero().flatten().tolist()
        if rows:
            root = model.get_submodule(group)
            dependencies.get_pruning_group(root, pruning[type(root)], idxs=rows).prune()
    model.eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert [p.shape for p in small.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "maxvit_t"])
def test_transformer_is_traced_or_refused_clearly(name: str) -> None:
    """No CNN; but nothing silently wrong comes out."""
    model = models.get_model(name, weights=None)
    try:
        graph = trace(model, torch.zeros(1, 3, 224, 224))
    except TraceError as error:
        raise AssertionError(error) from error
    assert len(graph.kept) > 1
