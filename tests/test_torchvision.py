"""torchvision beside a PyTorch that it was not built for, and what an import brings along."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from nets import hooked, randomize, some_kept

import sdap_lite
from sdap_lite import _torchvision, cost, count_macs, count_params, remove_channels, trace


def fresh(script: str) -> str:
    """Runs a script in a new process, where a warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The shim


def test_torchvision_loads_in_a_fresh_process() -> None:
    assert (
        fresh("""
import torch
from sdap_lite import _torchvision
assert _torchvision.load() is _torchvision.load()
vision = _torchvision.load()
model = vision.models.resnet18(num_classes=3).eval()
with torch.no_grad():
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
assert vision.datasets.CIFAR10 and vision.datasets.Imagenette
print(vision.__name__)
""")
        == "torchvision"
    )


def test_missing_operators_are_named_and_cannot_be_called() -> None:
    """As if torchvision's compiled file could not be loaded."""
    assert fresh("""
import builtins, importlib, torch
from sdap_lite import _torchvision
load = torch.ops.load_library
def broken(path):
    if "torchvision" in str(path):
        raise OSError("undefined symbol")
    return load(path)
torch.ops.load_library = broken
vision = _torchvision.load()
assert vision.models.mobilenet_v2
try:
    vision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except (NotImplementedError, RuntimeError) as error:
    print(type(error).__name__)
""") in ("NotImplementedError", "RuntimeError")


class Library:
    """In the place of torch's: nothing is registered."""

    def __init__(self, name: str, kind: str) -> None:
        self.defined: list[str] = []

    def define(self, schema: str) -> None:
        self.defined.append(schema)


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> list[Exception | ModuleType]:
    """What the next imports of torchvision give or raise."""
    answers: list[Exception | ModuleType] = []

    def answer(name: str) -> ModuleType:
        assert name == "torchvision"
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", answer)
    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(_torchvision, "_library", None)
    return answers


MISSING = RuntimeError("operator torchvision::nms does not exist")


def test_a_good_torchvision_is_left_alone(imports: list[Exception | ModuleType]) -> None:
    module = ModuleType("torchvision")
    imports.append(module)
    assert _torchvision.load() is module
    assert _torchvision._library is None


def test_operators_are_named_once(imports: list[Exception | ModuleType]) -> None:
    module = ModuleType("torchvision")
    imports += [MISSING, module]
    assert _torchvision.load() is module
    assert isinstance(_torchvision._library, Library)
    assert [schema.split("(")[0] for schema in _torchvision._library.defined] == ["nms", "qnms"]


def test_what_the_names_do_not_cure_is_raised(imports: list[Exception | ModuleType]) -> None:
    imports += [MISSING, MISSING]
    with pytest.raises(RuntimeError, match="operator torchvision::nms does not exist"):
        _torchvision.load()
    imports.append(MISSING)
    with pytest.raises(RuntimeError, match="operator torchvision::nms does not exist"):
        _torchvision.load()
    assert not imports


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'torchvision'"), RuntimeError("something else")])
def test_other_errors_are_raised(imports: list[Exception | ModuleType], error: Exception) -> None:
    imports.append(error)
    with pytest.raises(type(error), match=str(error)):
        _torchvision.load()
    assert _torchvision._library is None


# Its networks


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "regnet_y_400mf", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_networks_of_torchvision_are_cut_exactly(name: str) -> None:
    net = randomize(getattr(_torchvision.load().models, name)(num_classes=7)).eval()
    example = torch.zeros(1, 3, 64, 64)
    graph = trace(net, example)
    assert cost(graph) == count_params(net)
    assert cost(graph, unit="macs") == count_macs(net, example)
    assert int(graph.removable.sum()) > len(graph) // 3
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept, check=False).double()
    assert count_params(small) == cost(graph, kept)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with hooked(net.double(), graph, graph.join(kept, True)), torch.no_grad():
        wanted = net(x)
    with torch.no_grad():
        assert float((small(x) - wanted).abs().max()) <= 1e-10 * max(1.0, float(wanted.abs().max()))


# What an import brings along


def test_importing_the_library_brings_only_what_it_needs() -> None:
    heavy = "torchvision matplotlib seaborn pandas scipy onnx onnxruntime onnxscript typer hypothesis torch_pruning torch.utils.benchmark".split()
    assert fresh(f"import sys, sdap_lite; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_loading_bundled_images_and_weights_needs_no_torchvision() -> None:
    assert (
        fresh("""
import sys, sdap_lite as sdap
sdap.data.load("fashion-mini")
assert sdap.trace(sdap.models.resnet20(), __import__("torch").zeros(1, 3, 32, 32)).prunable
print([m for m in ("torchvision", "matplotlib") if m in sys.modules])
""")
        == "[]"
    )


def test_importing_prints_nothing_and_draws_no_random_number() -> None:
    assert fresh("import torch; state = torch.get_rng_state(); import sdap_lite; assert torch.equal(state, torch.get_rng_state())") == ""


def test_plots_come_when_they_are_asked_for() -> None:
    assert fresh("import sys, sdap_lite as sdap; sdap.plots.new_figure; print('matplotlib' in sys.modules)") == "True"


def test_public_names_exist() -> None:
    assert sdap_lite.__all__ == sorted(sdap_lite.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n))
    assert all(hasattr(sdap_lite, name) for name in sdap_lite.__all__)
    with pytest.raises(AttributeError, match="module 'sdap_lite' has no attribute 'magic'"):
        _ = sdap_lite.magic
