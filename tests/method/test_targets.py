"""The table of targets against the layers that networks really have."""

from __future__ import annotations

import re

import pytest
from kit.adapters import pipeline
from kit.transformers import TRANSFORMERS
from torch import nn

from dbray.errors import TrainError
from dbray.method.adapter import inject
from dbray.method.low_rank import LowRank
from dbray.method.targets import TARGETS, targets_of

NETWORKS = {
    "UNet2DConditionModel": lambda: pipeline("sdxl").unet,
    "CLIPTextModel": lambda: pipeline("sd").text_encoder,
    "CLIPTextModelWithProjection": lambda: pipeline("sdxl").text_encoder_2,
    **TRANSFORMERS,
}
# What a path tells of its layer, written otherwise than the table.
KINDS = {
    "attention": r".*\.(attn\d?|attention|self_attn)\..*",
    "feed-forward": r"(?!t_embedder).*\.(ff|ff_context|feed_forward|img_mlp|txt_mlp|mlp)\..*",
    "convolutions": r".*(resnets\.\d+\.conv\w*|samplers\.0\.conv)",
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_group_is_all_layers_of_its_kind(name: str) -> None:
    layers = {
        n for n, m in NETWORKS[name]().named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }
    for group in TARGETS[name]:
        adapter = inject(NETWORKS[name](), targets_of(name, [group]), LowRank(2, 2))
        assert set(adapter.layers) == {n for n in layers if re.fullmatch(KINDS[group], n)}, group


def test_groups_are_joined_in_the_order_given() -> None:
    both = targets_of("CLIPTextModel", ["feed-forward", "attention"])
    assert both == ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj")


@pytest.mark.parametrize(
    ("network", "group", "message"),
    [
        (
            "FluxTransformer2DModel",
            "convolutions",
            "has no layers called 'convolutions'; it has att",
        ),
        ("Unheard", "attention", "none: dbray has no targets for it"),
    ],
)
def test_a_group_that_a_network_lacks_is_refused(network: str, group: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        targets_of(network, [group])
