"""Plain training: its learning rate, its steps, and which parameters decay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import QUICK, build, pictures

import sdap_lite
from sdap_lite import loop, train
from sdap_lite.loop import learning_rate


def test_learning_rate_by_hand() -> None:
    assert learning_rate(0.0, 0.2) == pytest.approx(0.02)
    assert learning_rate(0.05, 0.2) == pytest.approx(0.2 * 0.55)
    assert learning_rate(0.1, 0.2) == pytest.approx(0.2)
    assert learning_rate(0.55, 0.2) == pytest.approx(0.1)
    assert learning_rate(1.0, 0.2) == pytest.approx(0.0)
    assert learning_rate(0.5, 0.2, warmup=0) == pytest.approx(0.1)


def test_weights_decay_and_norms_do_not() -> None:
    run = loop.Training(build("vgg"), pictures(), {"mode": "fp32", "device": "cpu", "validation": 0.1, "batch_size": 16, "weight_decay": 0.1, "lr": 0.1})
    first, second = run.optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in first["params"])
    assert all(p.ndim == 1 for p in second["params"])
    assert len(first["params"]) + len(second["params"]) == len(list(run.model.parameters()))


def test_one_step_by_hand() -> None:
    """A run of one batch, against a loop that is written out."""
    images = replace(pictures(20, 8), validation=pictures(8, 8).train)
    x, y = next(sdap_lite.data.batches(images.train, 32, images, shuffle=torch.Generator().manual_seed(1_000_003 * 5)))
    wanted = build("resnet-conv").train()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=learning_rate(0.0, 0.1), momentum=0.9, nesterov=True)
    F.cross_entropy(wanted(x), y, label_smoothing=0.1).backward()
    optimizer.step()
    model = build("resnet-conv")
    train(model, images, epochs=1, batch_size=32, lr=0.1, weight_decay=0, label_smoothing=0.1, seed=5, mode="fp32", device="cpu", progress=False)
    for (name, p), q in zip(model.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(("count", "size", "steps"), [(48, 16, 3), (47, 16, 3), (33, 16, 2), (32, 16, 2), (5, 16, 1)])
def test_steps_an_epoch_are_those_that_are_taken(monkeypatch: pytest.MonkeyPatch, count: int, size: int, steps: int) -> None:
    """The last batch is left out where it is a single image; the schedule must know."""
    seen: list[tuple[int, int]] = []
    step = loop.Training.step
    monkeypatch.setattr(loop.Training, "step", lambda self, x, y, i: seen.append((i, len(x))) or step(self, x, y, i))
    images = replace(pictures(count, 8), validation=pictures(8, 8).train)
    result = train(build("resnet-conv"), images, **{**QUICK, "batch_size": size})
    assert [i for i, _ in seen] == list(range(2 * steps))
    assert all(n > 1 for _, n in seen)
    assert result.history[-1]["lr"] == pytest.approx(learning_rate((2 * steps - 1) / (2 * steps), 0.01))
