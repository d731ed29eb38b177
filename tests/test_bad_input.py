"""One table of what may be given wrongly: each row is refused before any work, with exactly this sentence."""

from __future__ import annotations

import importlib
import math
import random
import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, Flattened, assert_same_bits, build, fingerprint, pictures
from torch import Tensor, nn
from torch.nn.utils.prune import random_unstructured
from torch.utils.data import DataLoader

import sdap_lite as sdap
from sdap_lite import Images, Split, models, prune, remove_channels, slice_optimizer, threshold, trace, train
from sdap_lite.checks import check_gradients, check_model, check_steady
from sdap_lite.loop import Training
from sdap_lite.measure import MODES

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "mode": "fp32", "device": "cpu", "progress": False}
IMAGES = pictures()
GRAPH = trace(build("resnet-pad"), EXAMPLE)
LARGEST = f"{sdap.largest_rate(GRAPH):.4f}"
FLOAT32 = "the model must be float32 (mixed precision is chosen by mode=), got "
FLAT = GRAPH.split(torch.ones(len(GRAPH)))
SET = "images must be an image set, as sdap.data.load gives, got "
READ = "sdap.data.from_datasets makes one of PyTorch's datasets"
TRACED = "the graph must be a ChannelGraph, as sdap.trace(model, example) gives, got "
PARTS = "there must be a dictionary with a tensor for each prunable group, got "
WRAPPED = "the model must be the network itself, but is wrapped in "
RATE = "rate must be the share that is removed, a number from 0 to below 1, got "


def pruning(**arguments: Any) -> Callable[[], object]:
    """A pruning of a small ResNet, but for what is named."""
    given = {"model": build("resnet-pad"), "images": IMAGES, "rate": 0.5, **QUICK, **arguments}
    return lambda: prune(**given)


def training(**arguments: Any) -> Callable[[], object]:
    given = {"model": build("resnet-pad"), "images": IMAGES, **QUICK, **arguments}
    return lambda: train(**given)


def of(model: Callable[[nn.Module], object]) -> Callable[[], object]:
    """A pruning of the small ResNet after something was done to it."""

    def call() -> object:
        net = build("resnet-pad")
        changed = model(net)
        return pruning(model=changed if isinstance(changed, nn.Module) else net)()

    return call


def labels(numbers: list[int]) -> Split:
    return Split(torch.zeros(len(numbers), 3, 16, 16, dtype=torch.uint8), torch.tensor(numbers))


class Branch(nn.Module):
    """Takes another way for dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("resnet-pad")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.mean() > 0 else self.net(-x)


class Changed(nn.Module):
    """A network whose logits code of its own changes."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.change = build("resnet-pad"), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self, self.net(x))


class Often(nn.Module):
    """It doubles an image's logits now and then, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("resnet-pad")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + (torch.rand(1) < 0.5).float())


class Frozen(nn.Module):
    """A backbone that gets no gradient."""

    def __init__(self, cut: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.cut = cut

    def backbone(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.last(self.cut(self, x))).mean((2, 3)))


UNREACHED = (
    "a gradient must reach the gates of every group, but none reaches those of 'first' at 'second', as under torch.no_grad() "
    "or before a detach(): take that out, or give rule='frozen'"
)
DETACHED = Frozen(lambda net, x: net.backbone(x).detach())  # type: ignore[operator]


class Versioned(Changed):
    def __init__(self) -> None:
        super().__init__(lambda net, y: y)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}


HOOKS = "the model must have no hooks, which may compute anything, but '{}' has: {} first"
LAZY = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4))
LAZY_MESSAGE = "the model must have all its tensors, but '2.weight' has no shape before a first call: run it once on an example"
STEADY = (
    "the model must give the same logits for the same images in eval mode, but does not: whatever is random in it must ask for "
    "self.training, as in F.dropout(x, 0.5, self.training)"
)
ONE_TENSOR = "the model must return one tensor [n, classes] in train mode, too, got {}: build it without further heads (aux_logits=False)"
TWO_HEADS = Changed(lambda net, y: (y, y) if net.training else y)


def bound(net: Any) -> None:
    net.layer1[0].forward = types.MethodType(lambda block, x: x, net.layer1[0])


def spoil(net: Any) -> None:
    net.layer1[0].bn1.running_var[0] = math.nan


def overflow(net: Any) -> None:
    net.fc.weight.data[0, 0] = math.inf


def hooked(net: Any) -> None:
    net.layer1[0].conv1.register_forward_hook(lambda module, inputs, output: output.flip(1))


def weight_norm(net: Any) -> None:
    nn.utils.parametrizations.weight_norm(net.layer1[0].conv1)


def optimizer_from_elsewhere() -> None:
    net = build("resnet-pad")
    kept = threshold(GRAPH, GRAPH.split(torch.ones(len(GRAPH))), 0.5)
    slice_optimizer(torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=0.1), net, remove_channels(net, GRAPH, kept), GRAPH, kept)


TABLE: dict[str, tuple[Callable[[], object], str]] = {
    # rates
    "rate: negative": (pruning(rate=-0.1), RATE + "-0.1"),
    "rate: one": (pruning(rate=1), RATE + "1"),
    "rate: per cent": (pruning(rate=75), RATE + "75"),
    "rate: NaN": (pruning(rate=math.nan), RATE + "nan"),
    "rate: infinite": (pruning(rate=math.inf), RATE + "inf"),
    "rate: string": (pruning(rate="0.75"), RATE + "'0.75'"),
    "rate: nothing": (pruning(rate=None), RATE + "None"),
    "rate: truth": (pruning(rate=True), RATE + "True"),
    "rate: a tensor": (pruning(rate=torch.tensor(0.5)), RATE + "tensor(0.5000)"),
    "rate: cannot be reached": (pruning(rate=0.999), f"rate must be at most {LARGEST} for this network, where every layer keeps one channel, got 0.999"),
    "rate: with all widths kept": (
        pruning(round_to=64),
        "rate must be at most 0.0000 for this network, where every layer keeps 64 channels, got 0.5",
    ),
    "rate: of no known unit": (pruning(unit="flops"), "unit must be one of params, macs, channels, latency, got 'flops'"),
    # settings
    "epochs: none": (pruning(epochs=0), "epochs must be a whole number from 1 on, got 0"),
    "epochs: half": (training(epochs=1.5), "epochs must be a whole number from 1 on, got 1.5"),
    "epochs: string": (training(epochs="3"), "epochs must be a whole number from 1 on, got '3'"),
    "batch of one": (training(batch_size=1), "batch_size must be a whole number from 2 on (batch norm needs two images), got 1"),
    "learning rate: none": (training(lr=0), "lr must be a number above 0, got 0"),
    "learning rate: string": (training(lr="0.1"), "lr must be a number above 0, got '0.1'"),
    "weight decay: negative": (training(weight_decay=-1), "weight_decay must be a number from 0 on, got -1"),
    "validation: everything": (training(validation=1), "validation must be the share that is held out, above 0 and below 1, got 1"),
    "validation: string": (training(validation="10%"), "validation must be the share that is held out, above 0 and below 1, got '10%'"),
    "validation: leaves nothing": (training(validation=0.999), "validation must leave at least 2 of 48 training images, got 0.999"),
    "alpha: above 1": (pruning(alpha=1.5), "alpha must lie between 0 and 1, got 1.5"),
    "ramp: string": (pruning(ramp="half"), "ramp must lie between 0 and 1, got 'half'"),
    "temperature: none": (pruning(temperature=0), "temperature must be above 0, got 0"),
    "temperature: infinite": (pruning(temperature=math.inf), "temperature must be above 0, got inf"),
    "rule: unknown": (pruning(rule="magic"), "rule must be one of rms, straight-through, adam, frozen, got 'magic'"),
    "round_to: none": (pruning(round_to=0), "round_to must be a whole number from 1 on, got 0"),
    "seed: string": (training(seed="a"), "seed must be a whole number below 2**32, got 'a'"),
    "seed: too large": (training(seed=2**64), "seed must be a whole number below 2**32, got 18446744073709551616"),
    "mode: unknown": (training(mode="fp16"), "mode must be auto or one of fp32, fp32-channels-last, bf16-channels-last, got 'fp16'"),
    "device: unknown": (training(device="gpu"), "device must be one that this PyTorch can compute on, got 'gpu': Expected one of cpu,*"),
    "device: without numbers": (training(device="meta"), "device must be one that this PyTorch can compute on, got 'meta': Tensor.item() cannot be called on*"),
    "resume: nowhere": (training(resume="no/where"), "resume must name a folder with a checkpoint.pt in it, got no/where"),
    # images
    "images: a name": (pruning(images="cifar10"), f"{SET}str: {READ}"),
    "images: a loader": (training(images=DataLoader([1])), f"{SET}DataLoader: {READ}"),
    "images: a part of a set": (lambda: sdap.accuracy(build("vgg"), IMAGES.test), f"{SET}Split: a part of a set is given beside it, as split="),
    "images: fewer, in words": (lambda: IMAGES.limit("5", 3), "train must be a whole number of images from 1 on, got '5'"),
    "images: none of many": (lambda: IMAGES.limit(5, 0), "test must be a whole number of images from 1 on, got 0"),
    "images: none": (lambda: replace(IMAGES, train=IMAGES.train[:0]), "there must be at least one training image, got none"),
    "images: none to test": (lambda: replace(IMAGES, test=IMAGES.test[:0]), "there must be at least one test image, got none"),
    "images: none to validate": (lambda: replace(IMAGES, validation=IMAGES.test[:0]), "there must be at least one validation image, got none"),
    "images: three": (pruning(images=replace(IMAGES, train=IMAGES.train[:3])), "there must be at least 4 training images, got 3"),
    "images: of one class": (
        pruning(images=replace(IMAGES, train=labels([2] * 20))),
        "the training images must be of at least 2 classes, but all are of class 'class 2'",
    ),
    "images: NaN": (
        lambda: Split(torch.full((4, 3, 16, 16), math.nan), torch.zeros(4, dtype=torch.long)),
        "images must be uint8 of shape [n, channels, height, width], got torch.float32 [4, 3, 16, 16]",
    ),
    "images: an array": (lambda: Split(np.zeros((4, 3, 16, 16), np.uint8), torch.zeros(4, dtype=torch.long)), "images must be a tensor, got ndarray"),
    "images: of another size to test": (
        lambda: replace(IMAGES, test=pictures(size=8).test),
        "test images must have the training images' shape [3, 16, 16], got [3, 8, 8]",
    ),
    "images: of no size": (lambda: sdap.data.load("fashion-mini", size=0), "size must be a whole number of pixels from 1 on, got 0"),
    "images: of a negative size": (lambda: sdap.data.load("fashion-mini", size=-3), "size must be a whole number of pixels from 1 on, got -3"),
    "images: of half a pixel": (lambda: sdap.data.load("fashion-mini", size=14.5), "size must be a whole number of pixels from 1 on, got 14.5"),  # type: ignore[arg-type]
    **{
        f"held out: {share}": (lambda share=share: IMAGES.hold_out(share), f"share must be the share that is held out, above 0 and below 1, got {share}")
        for share in (-1.0, 0, 1, math.nan, True)
    },
    "labels: a list": (lambda: Split(IMAGES.train.images, [0] * 48), "labels must be a tensor, got list"),
    "labels: of another count": (lambda: Split(IMAGES.train.images, IMAGES.train.labels[:9]), "labels must be int64 of shape [48], got torch.int64 [9]"),
    "labels: one-hot": (
        lambda: Split(IMAGES.train.images, torch.eye(4, dtype=torch.long)[IMAGES.train.labels]),
        "labels must be int64 of shape [48], got torch.int64 [48, 4]",
    ),
    "labels: floats": (lambda: Split(IMAGES.train.images, torch.zeros(48)), "labels must be int64 of shape [48], got torch.float32 [48]"),
    "labels: beyond the classes": (
        lambda: replace(IMAGES, train=labels([0, 1, 2, 3, 4])),
        "labels of the training images must lie in 0…3, one for each class, got 0…4",
    ),
    "labels: below the classes": (lambda: replace(IMAGES, test=labels([0, -1])), "labels of the test images must lie in 0…3, one for each class, got -1…0"),
    "deviation: none": (lambda: replace(IMAGES, std=(0.0,) * 3), "std must be one number above 0 for each of 3 channels, got (0.0, 0.0, 0.0)"),
    "mean: NaN": (lambda: replace(IMAGES, mean=(math.nan,) * 3), "mean must be one number for each of 3 channels, got (nan, nan, nan)"),
    "flip: a word": (lambda: replace(IMAGES, flip="no"), "flip must be True or False, got 'no'"),
    "mean: one number": (lambda: replace(IMAGES, mean=0.5), "mean must be one number for each of 3 channels, got 0.5"),
    "mean: words": (lambda: replace(IMAGES, mean=("a", "b", "c")), "mean must be one number for each of 3 channels, got ('a', 'b', 'c')"),
    "mean: of grey images": (lambda: replace(IMAGES, mean=(0.5,)), "mean must be one number for each of 3 channels, got (0.5,)"),
    # models and images
    "images: grey for a colour model": (
        pruning(images=pictures(channels=1)),
        "the model must take images of shape [1, 1, 16, 16], but: Given groups=1, weight of size [4, 3, 3, 3], expected *",
    ),
    "images: too small": (
        pruning(model=Flattened(), images=pictures(size=8)),
        "the model must take images of shape [1, 3, 8, 8], but: mat1 and mat2 shapes cannot be multiplied (1x6 and 54x7)",
    ),
    "model: fewer classes": (
        pruning(model=models.ResNet(8, classes=3, width=4)),
        "the model must give logits of shape [n, 4], one for each class of pictures, got [1, 3]",
    ),
    "model: a picture for each image": (
        pruning(model=nn.Conv2d(3, 4, 1)),
        "the model must give logits of shape [n, 4], one for each class of pictures, got [1, 4, 16, 16]",
    ),
    # scores
    "Taylor: no steps": (
        lambda: sdap.baselines.taylor(build("resnet-pad"), GRAPH, IMAGES, steps=0),
        "steps must be a whole number from 1 on, got 0",
    ),
    "scores: a list": (pruning(scores=[1.0]), f"scores must fit the network: {PARTS}list"),
    "scores: lists": (pruning(scores={name: [1.0] for name in GRAPH.prunable}), f"scores must fit the network: {PARTS}one of ['list']"),
    "threshold: of a model": (lambda: threshold(build("resnet-pad"), FLAT, 0.5), f"{TRACED}ResNet"),
    "threshold: of lists": (lambda: threshold(GRAPH, {name: [1.0] for name in FLAT}, 0.5), f"{PARTS}one of ['list']"),
    "threshold: of one tensor": (lambda: threshold(GRAPH, torch.ones(3), 0.5), f"{PARTS}Tensor"),
    **{
        f"cost power: {power}": (lambda power=power: threshold(GRAPH, FLAT, 0.5, cost_power=power), f"cost_power must be a number from 0 on, got {power!r}")
        for power in (math.nan, -3, "1")
    },
    "kept: nothing": (lambda: remove_channels(build("resnet-pad"), GRAPH, None), f"{PARTS}NoneType"),
    "kept: numbers": (
        lambda: sdap.report(GRAPH, FLAT),
        f"kept must hold bool tensors, got {dict.fromkeys(GRAPH.prunable, 'torch.float32')}",
    ),
    "report: of a model": (lambda: sdap.report(build("resnet-pad"), FLAT), f"{TRACED}ResNet"),
    "surgery: in another order": (lambda: remove_channels(GRAPH, build("resnet-pad"), FLAT), f"{TRACED}ResNet"),
    "gates: of a model": (lambda: sdap.Gates(build("resnet-pad")), f"{TRACED}ResNet"),
    "gates: on a graph": (lambda: sdap.Gates(GRAPH).attach(GRAPH), "the model must be a torch.nn.Module, got ChannelGraph"),
    "times: of a model": (lambda: sdap.time_layers(build("resnet-pad"), build("resnet-pad")), f"{TRACED}ResNet"),
    # arguments of a wrong type
    "variant: a name": (pruning(variant="soft"), "variant must be an sdap_lite.variants.Variant, got str"),
    "unit: a list": (pruning(unit=["params"]), "unit must be one of params, macs, channels, latency, got ['params']"),
    "rule: a list": (pruning(rule=["rms"]), "rule must be one of rms, straight-through, adam, frozen, got ['rms']"),
    "device: a number": (pruning(device=3.5), "device must be one that this PyTorch can compute on, got '3.5': ones(): argument 'device' must be*"),
    "checkpoint: a number": (training(checkpoint=5), "checkpoint must name a folder, got 5"),
    "resume: a number": (pruning(resume=5), "resume must name a folder, got 5"),
    # files
    "save: weights alone": (lambda: sdap.save(build("vgg").state_dict(), "x"), "the model must be a torch.nn.Module, got OrderedDict"),
    "save: compiled": (lambda: sdap.save(torch.compile(build("vgg")), "x"), f"{WRAPPED}OptimizedModule: give model._orig_mod"),
    "load: into a class": (lambda: sdap.load("x", models.VGG), "the model must be a torch.nn.Module, got type"),
    "load: into DataParallel": (lambda: sdap.load("x", nn.DataParallel(build("vgg"))), f"{WRAPPED}DataParallel: give model.module"),
    "load: without numbers": (
        lambda: sdap.load("x", build("vgg").to("meta")),
        "the model to load into must be on a device that holds numbers, got meta: build it outside of torch.device('meta')",
    ),
    "export: nowhere": (lambda: sdap.export_onnx(build("vgg"), "no/where/x.onnx", EXAMPLE), "the folder must exist, but there is no no/where"),
    "export: two outputs": (
        lambda: sdap.export_onnx(Changed(lambda net, y: (y, y)), "x.onnx", EXAMPLE),
        "the model must give one tensor in eval mode, to be compared with ONNX Runtime's, got tuple",
    ),
    # models
    "model: a name": (pruning(model="resnet20"), "the model must be a torch.nn.Module, got str"),
    "model: weights alone": (pruning(model=build("vgg").state_dict()), "the model must be a torch.nn.Module, got OrderedDict"),
    "model: on another device": (of(lambda net: net.to("meta")), "the model must be on one device that holds numbers, got meta"),
    "model: on two devices": (of(lambda net: net.fc.to("meta") and None), "the model must be on one device that holds numbers, got cpu and meta"),
    "model: half precision": (
        of(lambda net: net.half()),
        FLOAT32 + "torch.float16 in 'conv1.weight'",
    ),
    "model: bfloat16": (of(lambda net: net.bfloat16()), FLOAT32 + "torch.bfloat16 in 'conv1.weight'"),
    "model: half of it": (
        of(lambda net: net.fc.half() and None),
        FLOAT32 + "torch.float16 in 'fc.weight'",
    ),
    "model: frozen": (
        of(lambda net: net.requires_grad_(False)),
        "the model must have parameters that require a gradient, but all are frozen (or there are none): call requires_grad_(True)",
    ),
    "model: NaN": (of(spoil), "the model must hold finite numbers, but there is NaN or infinity in 'layer1.0.bn1.running_var'"),
    "model: a state that is no tensor": (
        pruning(model=Versioned()),
        "the model's state must be tensors, but '_extra_state' is a dict: take get_extra_state out of the class",
    ),
    "rate: numpy's truth": (pruning(rate=np.bool_(True)), RATE + "True"),
    "epochs: numpy's half": (pruning(epochs=np.float64(0.5)), "epochs must be a whole number from 1 on, got 0.5"),
    "model: infinite": (of(overflow), "the model must hold finite numbers, but there is NaN or infinity in 'fc.weight'"),
    "model: without convolutions": (
        pruning(model=nn.Sequential(nn.Flatten(), nn.Linear(768, 4))),
        "rate must be 0 for this network, of which no channel may go, got 0.5: print(sdap.trace(model, example)) says why",
    ),
    "model: without parameters": (
        pruning(model=nn.Flatten()),
        "the model must have parameters that require a gradient, but all are frozen (or there are none): call requires_grad_(True)",
    ),
    "model: a branch that depends on the data": (
        pruning(model=Branch()),
        "the model must be one that torch.fx can trace (no branch that depends on the data), got: *",
    ),
    "model: dropout in eval mode": (pruning(model=Changed(lambda net, y: F.dropout(y, 0.5))), STEADY),
    "model: random now and then": (pruning(model=Often()), STEADY),
    "model: two heads in train mode": (pruning(model=TWO_HEADS), ONE_TENSOR.format("tuple")),
    "model: two heads in training": (training(model=TWO_HEADS), ONE_TENSOR.format("tuple")),
    "model: pictures in train mode": (pruning(model=Changed(lambda net, y: y[:, :, None] if net.training else y)), ONE_TENSOR.format("[2, 10, 1]")),
    "model: an instance's forward": (
        of(bound),
        "the model must have no forward of an instance's own, which surgery cannot copy, but 'layer1.0' has: write it into a class",
    ),
    "model: a backbone under no_grad": (pruning(model=Frozen(lambda net, x: torch.no_grad()(net.backbone)(x)), rate=0.3), UNREACHED),
    "model: a detached backbone": (pruning(model=DETACHED, rate=0.3, rule="adam"), UNREACHED),
    "model: hooks": (of(hooked), HOOKS.format("layer1.0.conv1", "remove() them")),
    "model: old weight norm": (of(lambda net: torch.nn.utils.weight_norm(net.fc) and None), HOOKS.format("fc", "torch.nn.utils.remove_weight_norm(module)")),
    "model: old spectral norm": (
        of(lambda net: torch.nn.utils.spectral_norm(net.fc) and None),
        HOOKS.format("fc", "torch.nn.utils.remove_spectral_norm(module)"),
    ),
    "model: masks": (
        of(lambda net: random_unstructured(net.fc, "weight", 0.5) and None),
        HOOKS.format("fc", "torch.nn.utils.prune.remove(module, 'weight')"),
    ),
    "model: lazy": (pruning(model=LAZY), LAZY_MESSAGE),
    "model: lazy in training": (training(model=LAZY), LAZY_MESSAGE),
    "model: parametrizations": (
        of(weight_norm),
        "the model must have no gates or other parametrizations, but 'layer1.0.conv1' has, on weight: detach() or remove them first",
    ),
    "model: gates": (
        of(lambda net: sdap.Gates(GRAPH).attach(net)),
        "the model must have no gates or other parametrizations, but 'conv1' has, on weight: detach() or remove them first",
    ),
    "model: DataParallel": (of(nn.DataParallel), f"{WRAPPED}DataParallel: give model.module"),
    "model: compiled": (of(torch.compile), f"{WRAPPED}OptimizedModule: give model._orig_mod"),
    # teachers and optimizers
    "teacher: other classes": (pruning(teacher=models.ResNet(8, classes=7, width=4)), "the teacher must give as many logits as the model, 10, got 7"),
    "teacher: fewer classes": (
        pruning(teacher=models.ResNet(8, classes=3, width=4)),
        "the teacher must give logits of shape [n, 4], one for each class of pictures, got [1, 3]",
    ),
    "teacher: half precision": (
        pruning(teacher=build("vgg").half()),
        "the teacher must be float32 (mixed precision is chosen by mode=), got torch.float16 in 'features.0.weight'",
    ),
    "teacher: a name": (pruning(teacher="resnet20"), "the teacher must be a torch.nn.Module, got str"),
    "optimizer from elsewhere": (
        optimizer_from_elsewhere,
        "the optimizer must hold parameters of this model only, but holds others of shapes [[3, 2], [3]]",
    ),
}


OLD = "ignore:.*weight_norm. is deprecated:FutureWarning"
JIT = "ignore:.*torch.jit:DeprecationWarning"  # PyTorch's own, of its older compiler


@pytest.mark.filterwarnings(JIT)
@pytest.mark.filterwarnings(OLD)
@pytest.mark.parametrize("name", list(TABLE))
def test_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Training, "epoch", lambda *_: pytest.fail("nothing may be trained"))
    call, message = TABLE[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, to the letter
        call()
    said = str(caught.value)
    if message.endswith("*"):  # what follows is PyTorch's
        assert said.startswith(message[:-1])
    else:
        assert said == message


@pytest.mark.parametrize("run", [prune, train])
def test_refused_model_is_left_as_it_was(run: Callable[..., object]) -> None:
    net = build("resnet-pad").train()
    before = fingerprint(net)
    with pytest.raises(ValueError, match="epochs must be a whole number"):
        run(net, IMAGES, **{**QUICK, "epochs": 0})
    assert_same_bits(net, before)
    assert net.training


def test_backbone_without_a_gradient_is_welcome_where_scores_stay_frozen() -> None:
    scores = sdap.baselines.l1(DETACHED, trace(DETACHED, EXAMPLE))
    assert isinstance(pruning(model=DETACHED, rate=0.3, rule="frozen", scores=scores)(), sdap.Result)


def test_gradient_that_is_zero_or_left_out_by_chance_is_welcome() -> None:
    """A dead layer, a last norm that starts at zero, a block that is skipped at times in train mode."""
    dead = Frozen(lambda net, x: net.backbone(x))  # type: ignore[operator]
    nn.init.constant_(dead.second.bias, -100)
    start = build("resnet-conv")
    for block in start.layer1:
        nn.init.zeros_(block.bn2.weight)
    skipped = Frozen(lambda net, x: net.backbone(x).detach() if net.training else net.backbone(x))  # type: ignore[operator]
    for net in (dead, start, skipped):
        check_gradients(net, trace(net, EXAMPLE), IMAGES)


def test_numbers_may_be_numpys(tmp_path: Path) -> None:
    """They are in settings and checkpoints what Python's own are."""
    numbers: dict[str, Any] = {"rate": np.float32(0.5), "round_to": np.int64(1), "cuts": np.int32(1), "hold": np.float64(1), "seed": np.int64(3)}
    numbers |= {"epochs": np.int64(1), "batch_size": np.uint8(16), "lr": np.float64(0.02), "validation": np.float32(0.25)}
    found, wanted = (pruning(**given)() for given in ({**numbers, "checkpoint": tmp_path}, {name: n.item() for name, n in numbers.items()}))
    assert isinstance(found, sdap.Result)
    assert isinstance(wanted, sdap.Result)
    assert found.settings == wanted.settings
    assert {type(value) for value in found.settings.values()} <= {str, int, float, list, bool, type(None)}
    assert_same_bits(found.model, fingerprint(wanted.model))
    pruning(**{**numbers, "resume": tmp_path})()
    train(build("resnet-pad"), IMAGES, **{**QUICK, "label_smoothing": np.float32(0.1)})
    scores = GRAPH.split(torch.arange(float(len(GRAPH))))
    kept, same = (threshold(GRAPH, scores, rate, round_to=to) for rate, to in ((np.float32(0.5), np.int64(2)), (0.5, 2)))
    assert all(torch.equal(kept[name], same[name]) for name in same)


class Drawing(Changed):
    """It draws random numbers of all kinds, which make no difference in eval mode, and counts."""

    def __init__(self) -> None:
        super().__init__(lambda net, y: y + net.training * torch.rand_like(y) * random.random())
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += self.training
        return super().forward(x)


def test_what_is_tried_first_leaves_no_trace() -> None:
    """Not in the model, nor in what is random: a network that only draws in eval mode is welcome."""
    net = Drawing().train()
    net.net.layer1.eval()
    graph = trace(net, EXAMPLE)
    before, modes = fingerprint(net), [m.training for m in net.modules()]
    states = torch.get_rng_state(), random.getstate()
    check_steady(net, IMAGES)
    check_model(net, IMAGES)
    check_gradients(net, graph, IMAGES)
    assert all(p.grad is None for p in net.parameters())
    assert_same_bits(net, before)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.parametrize("mode", ["auto", *MODES])
def test_what_is_random_is_as_it_was_when_the_first_epoch_begins(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Modes are tried by training steps, in which a network draws."""

    class Begun(Exception):
        pass

    def begin(*_: object) -> None:
        raise Begun

    monkeypatch.setattr(Training, "epoch", begin)
    states = torch.get_rng_state(), random.getstate()
    for call in (pruning(model=Drawing(), mode=mode), training(model=Drawing(), mode=mode)):
        with pytest.raises(Begun):
            call()
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]


def test_network_that_cannot_be_cut_is_known_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sdap_lite.train")  # sdap_lite.train is the function
    cut: list[dict[str, Tensor]] = []

    def fail(model: nn.Module, graph: object, kept: dict[str, Tensor]) -> None:
        cut.append(kept)
        raise sdap.SurgeryError("differs")

    monkeypatch.setattr(module, "remove_channels", fail)
    monkeypatch.setattr(Training, "epoch", lambda *_: pytest.fail("nothing may be trained"))
    with pytest.raises(sdap.SurgeryError, match="differs"):
        pruning()()
    assert sdap.report(GRAPH, cut[0]).achieved("params") >= 0.5, "at the rate that is asked for"


@pytest.mark.filterwarnings(JIT)
def test_scripted_model_is_refused() -> None:
    message = "the model must be Python code that torch.fx can read, but is a RecursiveScriptModule: give the module that it was made from"
    with pytest.raises(ValueError, match=re.escape(message)):
        of(lambda net: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten())))()


def test_plain_training_takes_hooks_and_wrappers() -> None:
    """Only surgery would be misled by them."""
    seen: list[int] = []
    net = build("resnet-pad")
    net.fc.register_forward_hook(lambda *_: seen.append(1))
    train(nn.DataParallel(net), IMAGES, **QUICK)
    assert seen


def test_images_with_infinite_mask_in_a_buffer_are_welcome() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("resnet-pad")
            self.register_buffer("mask", torch.tensor([0.0] * 10 + [-math.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.mask[:10]

    assert isinstance(pruning(model=Masked())(), sdap.Result)


def test_images_must_be_images() -> None:
    assert isinstance(replace(IMAGES, validation=IMAGES.test), Images)
