"""Which layers of each class of network low-rank factors may be given to, by group.

Each name is the end of paths (see `adapter.inject`, which fails where one matches nothing). A base
without the layers of a group, as a transformer without convolutions, has no such group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dbray.errors import TrainError

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT = (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_JOINT_FEED_FORWARD = (*_FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2")
_CLIP = {"attention": ("q_proj", "k_proj", "v_proj", "out_proj"), "feed-forward": ("fc1", "fc2")}

TARGETS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "UNet2DConditionModel": {
        "attention": _ATTENTION,
        "feed-forward": _FEED_FORWARD,
        "convolutions": (
            "conv1",
            "conv2",
            "conv_shortcut",
            "downsamplers.0.conv",
            "upsamplers.0.conv",
        ),
    },
    "SD3Transformer2DModel": {"attention": _JOINT, "feed-forward": _JOINT_FEED_FORWARD},
    "FluxTransformer2DModel": {"attention": _JOINT, "feed-forward": _JOINT_FEED_FORWARD},
    # Single blocks fuse all in two layers; without them the adapter is too weak (diffusers#13011).
    "Flux2Transformer2DModel": {
        "attention": (*_JOINT, "to_qkv_mlp_proj", "attn.to_out"),
        "feed-forward": ("linear_in", "linear_out"),
    },
    "QwenImageTransformer2DModel": {
        "attention": _JOINT,
        "feed-forward": (
            "img_mlp.net.0.proj",
            "img_mlp.net.2",
            "txt_mlp.net.0.proj",
            "txt_mlp.net.2",
        ),
    },
    "ZImageTransformer2DModel": {
        "attention": _ATTENTION,
        "feed-forward": ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    },
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
}


def targets_of(network: str, groups: Iterable[str]) -> tuple[str, ...]:
    """List the targets of groups of layers of a class of network.

    Raises:
        TrainError: the class is not in the table, or has no such group.
    """
    known = TARGETS.get(network, {})
    if missing := [group for group in groups if group not in known]:
        have = ", ".join(known) or "none: dbray has no targets for it"
        raise TrainError(f"{network} has no layers called {missing[0]!r}; it has {have}")
    return tuple(target for group in groups for target in known[group])
