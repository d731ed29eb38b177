"""How long a forward pass of the pruned network takes, held against the dense one.

PyTorch and ONNX Runtime, batches of 1 and of 64, one thread; every shipped network, pruned by 75 %
of its parameters, and by 75 % of its MACs; and the pruned networks that are shipped. The time
follows the MACs: where most parameters lie in late layers, whose images are small, a rate counted in
parameters leaves most of the work. In the former the channels are chosen by batch-norm scales: the
time depends on widths only.
"""

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import torch
from harness import Row, show, take_turns
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite.baselines import norm_scales

CALLS = {1: 20, 64: 1}  # forward passes a turn, by batch size
PIXELS = {"imagenette": 64}  # a side, where it is not 32


def in_pytorch(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A function that runs the network."""

    def run() -> None:
        with torch.inference_mode():
            for _ in range(CALLS[len(x)]):
                model(x)

    return run


def in_onnx(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """The same in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        sdap.export_onnx(model, Path(folder) / "net.onnx", x[:1])
        session = onnxruntime.InferenceSession(Path(folder) / "net.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: [session.run(None, inputs) for _ in range(CALLS[len(x)])]


def prune(model: nn.Module, example: Tensor, unit: str) -> nn.Module:
    """The network without three quarters of its parameters or MACs."""
    graph = sdap.trace(model, example)
    return sdap.remove_channels(model, graph, sdap.threshold(graph, norm_scales(model, graph), 0.75, unit=unit))


def networks() -> Iterator[tuple[str, int, nn.Module, dict[str, nn.Module], float]]:
    """Each network's name, its images' side, the dense one, the pruned ones by what was done to them, and the limit wanted at 75 % of the parameters."""
    for shipped in sdap.models.PRETRAINED:
        name, _, data = shipped.partition("-")
        stock = name not in sdap.models.NETS
        dense = (sdap.models.stock(name, pretrained=data) if stock else sdap.models.NETS[name](pretrained=data)).eval()
        side = PIXELS.get(data, 32)
        example = torch.zeros(1, next(dense.parameters()).shape[1], side, side)
        small = {f"without 75 % of {unit}": prune(dense, example, unit) for unit in ("params", "macs")}
        yield shipped, side, dense, small, 0.5 if name in ("vgg", "resnet20") else 1.0
    for shipped in sdap.models.PRUNED:
        card = sdap.models.pruned_card(shipped)
        dense = sdap.models.NETS[card["net"]](in_channels=card["in_channels"], classes=len(card["classes"])).eval()
        yield shipped, card["settings"]["size"], dense, {"as shipped": sdap.models.pruned(shipped)}, 0.5 if card["net"].startswith(("vgg", "resnet")) else 1.0


def measure() -> list[Row]:
    warnings.simplefilter("ignore", FutureWarning)  # the exporter's own
    torch.manual_seed(0)
    rows = []
    for (shipped, side, dense, small, limit), batch in itertools.product(networks(), CALLS):
        x = torch.randn(batch, next(dense.parameters()).shape[1], side, side)
        for engine, make in {"PyTorch": in_pytorch, "ONNX Runtime": in_onnx}.items():
            times = take_turns({kind: make(net, x) for kind, net in {"dense": dense, **small}.items()}, repeats=9)
            for kind in small:
                milliseconds = {key: 1e3 * times[key] / CALLS[batch] for key in (kind, "dense")}
                wanted = None if "macs" in kind else limit
                rows.append(Row(f"{shipped}, {engine}, batch {batch}: {kind}", "dense", times[kind] / times["dense"], wanted, milliseconds, "ms"))
    return rows


if __name__ == "__main__":
    show(measure)
