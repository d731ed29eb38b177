"""timm's CNNs: traced, exact, and how much of each may go; or the reason why not.

The oracle is that of ``test_any_cnn``: the inputs of each consumer times their channels' mask, in hooks. No weights
are downloaded. What stays does so because the network's code wants it: a split or a slice by a number that no surgery
changes, a norm or a product over all channels, a weight that is computed from another.
"""

from __future__ import annotations

import pytest
import torch
from test_any_cnn import assert_exact, filled
from test_any_cnn import no_initialisation as no_initialisation  # the fixture

from sdap_lite import TraceError, _torchvision, cost, count_macs, count_params, largest_rate, trace

_torchvision.load()  # which timm imports
timm = pytest.importorskip("timm")

NUMBER, NORM = "it counts channels by a number written in the code", "it normalizes over all channels"
MIXES, MIXED, UNOWNED = "it mixes channels", "its input mixes channels at one place", "its weight is no layer's own"
STAYS, SPREAD = "it meets what must stay", "one channel is spread over many"

SIZE = 64
FREE = """
    resnet10t resnest14d resnext26ts repvgg_a0 tf_efficientnet_b0 efficientnet_b0_gn tinynet_e mnasnet_small mobilenetv2_035 mobilenetv3_small_050
    mobilenetv4_conv_small_050 lcnet_035 hardcorenas_a ghostnet_050 ghostnetv2_100 repghostnet_050 dla46_c hrnet_w18_small
    ese_vovnet19b_slim_dw mobileone_s0 legacy_xception resnetv2_18 legacy_seresnet18 selecsls42b hgnetv2_b0 starnet_s050 repvit_m0_9 fastvit_t8
    regnetx_002 regnety_002 test_byobnet
""".split()
PARTLY: dict[str, tuple[float, set[str]]] = {  # the share of the parameters that may go, and why not the others
    "skresnet18": (0.99, {NUMBER}),
    "res2net50_14w_8s": (0.89, {NUMBER}),
    "mixnet_s": (0.74, {NUMBER}),
    "rexnet_100": (0.99, {NUMBER}),
    "cs3darknet_focus_s": (0.99, {NUMBER}),
    "dpn48b": (0.94, {NUMBER}),
    "fasternet_t0": (0.89, {NUMBER}),
    "inception_next_atto": (0.80, {NUMBER, NORM}),
    "convnext_atto": (0.88, {NORM}),
    "resnetblur50": (0.99, {UNOWNED}),
    "eca_resnext26ts": (0.99, {MIXED, STAYS}),
    "gcresnext26ts": (0.99, {SPREAD, NORM}),
    "edgenext_xx_small": (0.75, {NORM, SPREAD, MIXES, STAYS}),
    "efficientvit_m0": (0.87, {MIXED, STAYS, NUMBER}),
    "efficientvit_b0": (0.97, {NORM}),
    "mobilevit_xxs": (0.73, {NORM, NUMBER, MIXES}),
    "poolformer_s12": (0.82, {NORM, NUMBER}),
}
WHOLE: dict[str, set[str]] = {  # nothing may go, and the report says why
    "nf_resnet26": {UNOWNED},
    "resnetv2_50x1_bit": {UNOWNED},
    "convnextv2_atto": {NORM, MIXES},
}
REFUSED: dict[str, str] = {  # code that depends on the image's size in a way that this example does not meet
    "efficientformer_l1": r"the example of shape \[1, 3, 64, 64\] must run through the model, got: The size of tensor a \(4\) must match",
    "visformer_tiny": r"the example of shape \[1, 3, 64, 64\] must run through the model, got: Input height",
}


def build(name: str) -> torch.nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=7).eval()


@pytest.mark.parametrize("name", [*FREE, *PARTLY])
def test_timm_network(name: str) -> None:
    model = build(name)
    graph = trace(model, torch.zeros(1, 3, SIZE, SIZE))
    least, reasons = PARTLY.get(name, (0.99, set()))
    assert least <= largest_rate(graph), graph
    assert {note.reason for note in graph.kept} == {*reasons, "the network's output"}
    assert cost(graph) == count_params(model)
    assert cost(graph, unit="macs") == count_macs(model, torch.zeros(1, 3, SIZE, SIZE))
    filled(model)
    for seed, share in enumerate((0.5, 0.2)):
        assert_exact(model, graph, seed, share, SIZE)


@pytest.mark.parametrize("name", list(WHOLE))
def test_timm_network_that_stays_whole(name: str) -> None:
    model = build(name)
    graph = trace(model, torch.zeros(1, 3, SIZE, SIZE))
    assert largest_rate(graph) == 0, graph
    assert {note.reason for note in graph.kept} == {*WHOLE[name], "the network's output"}


@pytest.mark.parametrize("name", list(REFUSED))
def test_timm_network_that_is_not_traced(name: str) -> None:
    model = build(name)
    with pytest.raises(TraceError, match=REFUSED[name]):
        trace(model, torch.zeros(1, 3, SIZE, SIZE))
