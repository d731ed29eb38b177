"""A gated training step, without and with the teacher, held against the same step without gates.

One batch, forward, backward and the optimizer's step, in the mode that ``sdap.train`` chooses on
this machine. A gated step does all that ``sdap.prune`` does: scores learn at each step, and at
every fifth the gates are opened and closed again.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Row, show, take_turns
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite.folding import fold_norms
from sdap_lite.measure import MODES, arrange, choose_mode
from sdap_lite.pruning import CLOSE_EVERY


def make_step(dense: nn.Module, x: Tensor, labels: Tensor, mode: str, *, gated: bool = False, teacher: bool = False) -> Callable[[], None]:
    """A function that makes ``CLOSE_EVERY`` training steps of a copy of the model."""
    dtype, layout = MODES[mode]
    x = x.to(memory_format=layout)
    model = arrange(copy.deepcopy(dense).train(), layout)
    taught = arrange(fold_norms(dense, x), layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    gates = sdap.Gates(sdap.trace(dense, x)).attach(model) if gated else None

    def forward(network: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return network(x).float()

    def step() -> None:
        logits = forward(model)
        loss = F.cross_entropy(logits, labels)
        if teacher:
            with torch.no_grad():
                soft = forward(taught)
            loss = sdap.distillation_loss(logits, soft, labels)
        optimizer.zero_grad()
        loss.backward()
        if gates:
            gates.learn()
        optimizer.step()

    def steps() -> None:
        if gates:
            gates.close_to(0.5)
        for _ in range(CLOSE_EVERY):
            step()

    return steps


def measure() -> list[Row]:
    torch.manual_seed(0)
    rows = []
    for name in ("resnet20", "vgg"):
        model = getattr(sdap.models, name)(pretrained="cifar10")
        x, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
        mode = choose_mode(model, x[:64])
        kinds = {"plain": {}, "gated": {"gated": True}, "with teacher": {"gated": True, "teacher": True}}
        times = take_turns({kind: make_step(model, x, labels, mode, **arguments) for kind, arguments in kinds.items()})
        for kind, limit in (("gated", 1.05), ("with teacher", 1.40)):
            figures = {kind: times[kind] / CLOSE_EVERY, "plain": times["plain"] / CLOSE_EVERY}
            rows.append(Row(f"{name}: {kind} step", "plain step", times[kind] / times["plain"], limit, figures))
    return rows


if __name__ == "__main__":
    show(measure)
