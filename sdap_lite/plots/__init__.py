"""The book's figures: each a function from data to a matplotlib figure.

White paper, so that a figure reads the same in light and dark mode; seaborn's colour-blind-safe
palette, and markers beside colours; labelled axes with units, and the baseline drawn.
"""

from __future__ import annotations

from .channels import (
    accuracy_by_share,
    achieved_rates,
    bisection,
    group_matrix,
    image_grid,
    latency_by_width,
    layer_costs,
    layer_widths,
    loss_increases,
    method_picture,
    prediction,
    recorded_rows,
    redundancy,
    schedules,
    score_pairs,
)
from .findings import attention, cost_growth, effects, hours_by_devices, lost_by_rate, rank_and_share, ratios, time_parts
from .run import class_likeness, epochs_by_seed, gradient_by_temperature, kept_by_step, newly_wrong, recovery, run_by_step, soft_answers
from .style import BASELINE, MARKERS, PALETTE, baseline, footnote, new_figure
from .surgery import before_and_after, channel_map, cut_by_hand, drift, latencies, leaks, shares_left, shortcut_channels

__all__ = [
    "BASELINE",
    "MARKERS",
    "PALETTE",
    "accuracy_by_share",
    "achieved_rates",
    "attention",
    "baseline",
    "before_and_after",
    "bisection",
    "channel_map",
    "class_likeness",
    "cost_growth",
    "cut_by_hand",
    "drift",
    "effects",
    "epochs_by_seed",
    "footnote",
    "gradient_by_temperature",
    "group_matrix",
    "hours_by_devices",
    "image_grid",
    "kept_by_step",
    "latencies",
    "latency_by_width",
    "layer_costs",
    "layer_widths",
    "leaks",
    "loss_increases",
    "lost_by_rate",
    "method_picture",
    "new_figure",
    "newly_wrong",
    "prediction",
    "rank_and_share",
    "ratios",
    "recorded_rows",
    "recovery",
    "redundancy",
    "run_by_step",
    "schedules",
    "score_pairs",
    "shares_left",
    "shortcut_channels",
    "soft_answers",
    "time_parts",
]
