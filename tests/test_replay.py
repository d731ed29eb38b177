"""Recorded steps: a run gives them what it must, so that they can be replayed; and on a GPU they give what is not recorded gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import killed_run
import pytest
import torch
import torch.nn.functional as F
from nets import assert_same_bits, build, fingerprint, pictures
from torch import Tensor

from sdap_lite import loop
from sdap_lite.replay import Recording
from sdap_lite.variants import Variant

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Echo:
    """A recording for the CPU: it computes anew, but only where all that a recorded step reads lies where it lay."""

    made: list[Echo]

    def __init__(self, compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], leaves: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
        self.compute, self.inputs, self.calls = compute, tuple(x.clone() for x in inputs), 0
        self.tensors = {id(t) for t in [*leaves, *buffers]}
        self.places = self.addresses()
        self.made.append(self)

    def addresses(self) -> list[int]:
        run: Any = self.compute.__self__  # type: ignore[attr-defined]
        assert {id(t) for t in [*run.leaves(), *run.model.buffers()]} == self.tensors
        gates = getattr(run, "gates", None)
        return [t.data_ptr() for t in [*run.leaves(), *run.model.buffers(), *([gates.kept] if gates else [])]]

    def __call__(self, *inputs: Tensor) -> Tensor:
        assert self.addresses() == self.places
        self.calls += 1
        for old, new in zip(self.inputs, inputs, strict=True):
            old.copy_(new)
        return self.compute(*self.inputs)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> type[Echo]:
    monkeypatch.setattr(loop.Training, "records", property(lambda self: True))
    monkeypatch.setattr(loop, "Recording", Echo)
    monkeypatch.setattr(Echo, "made", [], raising=False)
    return Echo


@pytest.mark.parametrize(
    ("kind", "more", "models"),
    [("train", {}, 1), ("rms", {"cuts": 1}, 2), ("rms", {}, 4), ("straight-through", {}, 4), ("frozen", {"cuts": 1}, 2)],
)
def test_replayed_run_is_the_run(kind: str, more: dict[str, Any], models: int, request: pytest.FixtureRequest) -> None:
    """Bit by bit; one recording for each network that the run goes through: before, between and after its surgeries."""
    plain = killed_run.run(kind, **more)
    before = fingerprint(plain.model)
    echo = request.getfixturevalue("echo")
    replayed = killed_run.run(kind, **more)
    assert_same_bits(replayed.model, before)
    assert [r["loss"] for r in replayed.history] == [r["loss"] for r in plain.history]
    assert len(echo.made) == models
    whole = len(pictures().hold_out()[1]) // killed_run.PRUNE["batch_size"]
    assert sum(recording.calls for recording in echo.made) == whole * len(plain.history), "all batches but an epoch's last, which is smaller"


@pytest.mark.parametrize("variant", [{"labels": True}, {"maps": 1.0}, {"soft": 30.0}, {"scaling": True}])
def test_step_that_leaves_more_than_gradients_is_not_recorded(echo: type[Echo], variant: dict[str, Any]) -> None:
    rule = "adam" if {"soft", "scaling"} & variant.keys() else "rms"
    killed_run.run(rule, epochs=1, variant=Variant(**variant))
    assert not echo.made


@pytest.mark.parametrize(
    ("device", "processes", "replay", "recorded"),
    [("cuda", 1, True, True), ("cuda", 1, False, False), ("cuda", 2, True, False), ("mps", 1, True, False), ("cpu", 1, True, False)],
)
def test_where_steps_are_recorded(device: str, processes: int, replay: bool, recorded: bool) -> None:
    run = SimpleNamespace(device=torch.device(device), team=SimpleNamespace(size=processes), settings={"replay": replay} if device == "cuda" else {})
    assert loop.Training.records.fget(run) == recorded


def test_wrong_replay_is_refused() -> None:
    with pytest.raises(ValueError, match="replay must be True or False, got 'yes'"):
        killed_run.run("train", replay="yes")


def test_nothing_is_recorded_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Recording", None)
    killed_run.run("rms", epochs=1)


# On a GPU


@gpu
def test_recording_computes_what_was_recorded() -> None:
    net = build("resnet-pad").cuda().train()
    other = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, 16, 16, generator=generator).cuda(), torch.randint(4, (8,), generator=generator).cuda()) for _ in range(3)]

    def compute(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss.detach()

    recording = Recording(compute, batches[0], net.parameters(), net.buffers())
    assert_same_bits(net, other.state_dict())
    for x, y in batches:
        wanted = F.cross_entropy(other(x), y)
        other.zero_grad()
        wanted.backward()
        assert float(recording(x, y)) == pytest.approx(float(wanted.detach()), abs=1e-5)
        for mine, its in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(dict(net.named_buffers()), dict(other.named_buffers()))


@gpu
def test_step_that_asks_the_gpu_is_refused() -> None:
    weight = torch.ones(2, device="cuda", requires_grad=True)

    def compute(x: Tensor) -> Tensor:
        loss = (weight * x).sum()
        loss.backward()
        return loss * float(loss)

    with pytest.raises(ValueError, match="a step must do nothing but compute on tensors to be recorded"):
        Recording(compute, (torch.ones(2, device="cuda"),), [weight], [])


@gpu
def test_recorded_gates_follow_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a GPU, recorded and not: the first steps differ by rounding only."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    recorded, plain = (killed_run.run("rms", device="cuda", epochs=2, ramp=1.0, cuts=1, replay=replay).history for replay in (True, False))
    assert [r["loss"] for r in recorded] == pytest.approx([r["loss"] for r in plain], rel=0.02)
