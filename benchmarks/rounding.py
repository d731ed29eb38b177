"""What widths that 8 does not divide cost: pruned MobileNetV2s held against the dense one.

The networks of `headline-mobilenetv2-imagenette` and `headline-mobilenetv2-imagenette-90`, three
seeds, as pruned by default and with `round_to=8`, built from the widths in the records: the time
depends on nothing else. 64 pixels, one thread. Depthwise kernels work on several channels at a time,
so other widths can be slower than the dense network, though much of it is gone. Chapter 10.
"""

import itertools
import warnings

import torch
from harness import Row, show, take_turns
from latency import CALLS, in_onnx, in_pytorch

import sdap_lite as sdap

RECORDS, SIDE = ("headline-mobilenetv2-imagenette", "headline-mobilenetv2-imagenette-90"), 64
ARMS = ("sdap", "sdap, widths by eights")


def measure() -> list[Row]:
    warnings.simplefilter("ignore", FutureWarning)  # the exporter's own
    torch.manual_seed(0)
    dense = sdap.models.stock("mobilenet_v2").eval()
    graph = sdap.trace(dense, torch.zeros(1, 3, SIDE, SIDE))
    nets = {"dense": dense}
    for row in itertools.chain.from_iterable(sdap.records.recorded(name)["rows"] for name in RECORDS):
        if row["arm"] in ARMS:
            kept = {name: torch.arange(len(group)) < row["widths"][name] for name, group in graph.prunable.items()}
            nets[f"{row['arm']}, {row['rate']:.0%} gone, seed {row['seed']}"] = sdap.remove_channels(dense, graph, kept)
    rows = []
    for batch, (engine, make) in itertools.product(CALLS, {"PyTorch": in_pytorch, "ONNX Runtime": in_onnx}.items()):
        x = torch.randn(batch, 3, SIDE, SIDE)
        times = take_turns({name: make(net, x) for name, net in nets.items()}, repeats=9)
        for name in list(nets)[1:]:
            milliseconds = {key: 1e3 * times[key] / CALLS[batch] for key in (name, "dense")}
            rows.append(Row(f"{engine}, batch {batch}: {name}", "dense", times[name] / times["dense"], None, milliseconds, "ms"))
    return rows


if __name__ == "__main__":
    show(measure)
