"""What every test shares: one thread, one seed, and the small networks of ``nets.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from nets import EXAMPLE, MODELS, NETS, build
from torch import nn

from sdap_lite import ChannelGraph, trace

# The same examples in every run; a slow machine is no failure.
settings.register_profile("tests", derandomize=True, deadline=None, max_examples=40, database=None, suppress_health_check=list(HealthCheck))
# ``make fuzz``: other examples in every run, and many.
examples = int(os.environ.get("SDAP_EXAMPLES", "2000"))
settings.register_profile("nightly", settings.get_profile("tests"), derandomize=False, max_examples=examples, print_blob=True)
settings.load_profile("tests")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Networks this small gain nothing from threads, and one thread gives the same bits on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Each wiring of ``models.py``, at a tiny width."""
    return build(request.param)


@pytest.fixture(params=list(NETS))
def net(request: pytest.FixtureRequest) -> nn.Module:
    """Each wiring of ``models.py``, and those that only other people's networks have."""
    return build(request.param)


@pytest.fixture
def graph(request: pytest.FixtureRequest) -> ChannelGraph:
    """The graph of the test's own ``net`` or ``model``."""
    name = "net" if "net" in request.fixturenames else "model"
    return trace(request.getfixturevalue(name), EXAMPLE)
