"""Channel pruning with trainable gates and self-distillation, small enough to read.

A reading of *Self-distillation enhanced adaptive pruning of convolutional neural networks*
(Diao et al., Pattern Recognition 157, 2025), with the book that explains it.

    import sdap_lite as sdap

    model  = sdap.models.resnet20(pretrained="cifar10")
    images = sdap.data.load("cifar10")
    result = sdap.prune(model, images, rate=0.75, epochs=30)
"""

from . import data, models, records
from .budget import Report, channel_costs, cost, largest_rate, report, schedule, threshold
from .channels import TraceError, trace
from .data import DatasetUnavailable, Images, Split, by_scale
from .distill import distillation_loss
from .gates import Gates, straight_through
from .graph import ChannelGraph
from .latency_table import LatencyTable
from .measure import accuracy, count_macs, count_params, latency
from .rules import RULES, Adam, Frozen, RootMeanSquare, StraightThrough
from .saving import export_onnx, load, save
from .surgery import SurgeryError, masked, remove_channels, slice_optimizer
from .timing import time_layers
from .train import Result, prune, train

__version__ = "0.1.0"

__all__ = [
    "RULES",
    "Adam",
    "ChannelGraph",
    "DatasetUnavailable",
    "Frozen",
    "Gates",
    "Images",
    "LatencyTable",
    "Report",
    "Result",
    "RootMeanSquare",
    "Split",
    "StraightThrough",
    "SurgeryError",
    "TraceError",
    "accuracy",
    "by_scale",
    "channel_costs",
    "cost",
    "count_macs",
    "count_params",
    "data",
    "distillation_loss",
    "export_onnx",
    "largest_rate",
    "latency",
    "load",
    "masked",
    "models",
    "prune",
    "records",
    "remove_channels",
    "report",
    "save",
    "schedule",
    "slice_optimizer",
    "straight_through",
    "threshold",
    "time_layers",
    "trace",
    "train",
]


def __getattr__(name: str) -> object:
    """``plots``, which brings matplotlib along, and ``exercises`` are imported when they are first used."""
    if name in ("plots", "exercises"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
