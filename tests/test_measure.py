"""Parameters, MACs, accuracy, and the choice of a mode; nothing here depends on how fast the machine is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, Viewed, assert_same_bits, build, fingerprint, pictures
from torch import Tensor, nn

from sdap_lite import accuracy, count_macs, count_params, latency, measure
from sdap_lite.data import normalize


def test_shared_parameter_is_counted_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    assert count_params(net) == 16


@pytest.mark.parametrize(
    ("net", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), 3 * 8 * 9 * 8 * 8),
        (nn.Conv2d(3, 6, 5, groups=3), 6 * 25 * 12 * 12),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), 3 * 4 * 4 * 16 * 16),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), 768 * 5),
        (nn.BatchNorm2d(3), 0),
    ],
)
def test_macs_by_hand(net: nn.Module, macs: int) -> None:
    assert count_macs(net, EXAMPLE) == macs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_macs_of_attention_by_hand(dtype: torch.dtype) -> None:
    """Which a CPU computes in one operation that is not counted, where it can."""

    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    assert count_macs(Attends(), torch.zeros(1, 2, 9, 16, dtype=dtype)) == 2 * 2 * 9 * 9 * 16


def test_counting_leaves_the_model_as_it_was(model: nn.Module) -> None:
    model.train()
    model.fc.eval()
    before = fingerprint(model)
    count_macs(model, EXAMPLE)
    assert_same_bits(model, before)
    assert model.training
    assert not model.fc.training


class Oracle(nn.Module):
    """Knows the class from the mean brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        brightness = x.mean((1, 2, 3))
        return torch.stack([-(brightness - level).square() for level in (-2.0, 0.0, 2.0)], 1) + self.nothing


def test_accuracy_and_logits_by_hand() -> None:
    images = pictures(12, 9, classes=3)
    for level, value in enumerate((0, 127, 255)):
        images.test.images[images.test.labels == level] = value
    model = Oracle().train()
    assert accuracy(model, images) == 1.0
    assert model.training
    images.test.labels[:3] = 0  # two of nine are now wrong
    assert accuracy(model, images) == pytest.approx(7 / 9)
    assert accuracy(model, images, split=images.test[:3]) == pytest.approx(1 / 3)
    logits = measure.predict(model, images.test, images, batch_size=4)
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(normalize(images.test.images, images.mean, images.std)))


def test_prediction_is_the_same_in_every_mode() -> None:
    model, images = build("resnet-pad"), pictures()
    wanted = measure.predict(model, images.test, images)
    for mode in measure.MODES:
        found = measure.predict(model, images.test, images, mode=mode)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.1 * float(wanted.abs().max()) if "bf16" in mode else 1e-4)


def test_evaluating_restores_modes_after_an_error() -> None:
    model = build("vgg").train()
    model.fc.eval()
    with pytest.raises(AssertionError, match="inside"), measure.evaluating(model):
        assert model.training, "inside"
    assert model.training
    assert model.features[1].training
    assert not model.fc.training


def test_latency_is_a_positive_number() -> None:
    model = build("vgg").train()
    found = latency(model, EXAMPLE, seconds=0.01)
    assert found.median > 0
    assert found.spread >= 0
    assert model.training
    assert str(measure.Latency(1.234, 0.5)) == "1.23 ms ± 0.25"


def test_fastest_mode_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fp32": 3.0, "fp32-channels-last": 1.0, "bf16-channels-last": 2.0}
    monkeypatch.setattr(measure, "_time_steps", lambda model, example, mode, *limits: times[mode])
    assert measure.choose_mode(build("vgg"), EXAMPLE) == "fp32-channels-last"


def test_a_slow_mode_is_given_up_after_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steps = [0.0], {"float32": 1.0, "bfloat16": 2.5}
    taken: list[str] = []

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            taken.append(str(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype).removeprefix("torch."))
            clock[0] += steps[taken[-1]]
            return super().forward(x.flatten(1))

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    assert measure.choose_mode(Model(3 * 4 * 4, 2), torch.zeros(2, 3, 4, 4)) == "fp32"
    assert taken == 8 * ["float32"] + 2 * ["bfloat16"]  # a step that warms up and three that count, or one


def test_choosing_a_mode_leaves_the_model_as_it_was() -> None:
    model = build("vgg")
    before = fingerprint(model)
    assert measure.choose_mode(model, torch.zeros(4, 3, 16, 16), steps=1) in measure.MODES
    assert_same_bits(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_a_mode_in_which_the_model_cannot_be_trained_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.choose_mode(Viewed(), EXAMPLE.repeat(4, 1, 1, 1)) == "fp32"
    broken = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))  # in no mode
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure.choose_mode(broken, EXAMPLE)


def test_unknown_mode_is_refused() -> None:
    model, images = build("resnet-pad"), pictures()
    for call in (lambda: accuracy(model, images, mode="fp16"), lambda: measure.predict(model, images.test, images, mode="fp16")):
        with pytest.raises(ValueError, match="mode must be one of fp32, fp32-channels-last, bf16-channels-last, got 'fp16'"):
            call()


def test_choosing_a_mode_leaves_the_random_numbers_alone() -> None:
    """Whatever the model draws while it is timed."""
    model, state = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 16 * 16, 4)), torch.get_rng_state()
    measure.choose_mode(model, EXAMPLE.repeat(2, 1, 1, 1), steps=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", ["fp32-channels-last", "bf16-channels-last"])
def test_mode_is_checked(mode: str) -> None:
    model, state = build("vgg"), torch.get_rng_state()
    before = fingerprint(model)
    measure.check_mode(model, EXAMPLE.repeat(2, 1, 1, 1), mode)
    assert_same_bits(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=rf"mode must be one in which the model can be trained, but in '{mode}' a step fails: view size is not compatible"):
        measure.check_mode(Viewed(), EXAMPLE.repeat(2, 1, 1, 1), mode)


def test_mps_always_takes_fp32() -> None:
    example = SimpleNamespace(device=torch.device("mps"))
    assert measure.choose_mode(nn.Identity(), example) == "fp32"  # type: ignore[arg-type]


@pytest.mark.parametrize(("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_best_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert measure.best_device() == torch.device(wanted)
