"""The same subject by every engine: plain torch and ZeRO 1 to 3, on one and on two ranks.

Run as a script, this file is one rank: `test_zero.py FOLDER RANK WORLD_SIZE` trains every case and
leaves what came of it in FOLDER. The tests then compare. Real DeepSpeed, over gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from kit.bases import build_tiny_base
from kit.families import FAMILIES
from kit.training import Trained, recipe_of
from safetensors.torch import load_file

from dbray import bases
from dbray.spec.resources import Resources
from dbray.training.batches import Share

pytestmark = pytest.mark.timeout(900)

TESTS = Path(__file__).parents[1]
STAGES = (0, 1, 2, 3)
RANKS = (1, 2)
LOSS_TOLERANCE = 1e-5
"""Relative, in float32: ranks and stages add the same numbers up in another order."""

# Parameters that no loss depends on are in the last two: the last layer of SDXL's first text
# encoder, and the text path of Qwen-Image's last block.
RECIPES = {
    "full": ("tiny", recipe_of("full", ema_decay=0.9)),
    "lora": ("tiny", recipe_of({"kind": "lora", "rank": 2})),
    "dora": ("tiny", recipe_of({"kind": "lora", "rank": 2, "dora": True})),
    "pivotal": ("tiny", recipe_of({"kind": "pivotal", "rank": 2})),
    "textual_inversion": ("tiny", recipe_of("textual_inversion")),
    "full of sdxl": ("sdxl", recipe_of("full", train_text_encoder=True, learning_rate=1e-4)),
    "full of qwen_image": ("qwen_image", recipe_of("full", learning_rate=1e-3)),
}
CASES = [(name, stage, False) for name in ("full", "lora") for stage in STAGES]
CASES += [(name, stage, False) for name in [*RECIPES][2:] for stage in (0, 2, 3)]
CASES += [("full", stage, True) for stage in STAGES[1:]]


def label(name: str, stage: int, offload: bool) -> str:
    return f"{name}, stage {stage}{', offloaded' if offload else ''}"


# ---- one rank -----------------------------------------------------------------------------------


def be_a_rank(folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size
        )
    curves, held = {}, {}
    for case in CASES:
        name, stage, offload = case
        folder_of_base, recipe = RECIPES[name]
        resources = Resources(zero_stage=stage, offload="optimiser" if offload else None)
        base = bases.resolve(str(folder.parent / folder_of_base))
        trained = Trained(base, recipe, resources=resources, share=Share(rank, world_size))
        curves[label(*case)] = [point.loss for point in trained.curve]
        held[label(*case)] = held_by(trained.network)
        for file, data in trained.files.items():
            (folder / f"{label(*case)}+{file}").write_bytes(data)
    found = {"curves": curves, "held": held}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.barrier()
    dist.destroy_process_group()


def held_by(network) -> dict[str, int]:
    """Bytes of trained and of frozen parameters that this rank holds between two calls."""

    def count(trains: bool) -> int:
        return sum(held_of(p) for p in network.parameters() if p.requires_grad == trains)

    return {"trained": count(True), "frozen": count(False)}


def held_of(parameter) -> int:
    share = getattr(parameter, "ds_tensor", parameter)
    return share.numel() * share.element_size()


# ---- the tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    build_tiny_base(folder / "tiny")
    for name in ("sdxl", "qwen_image"):
        FAMILIES[name].build(folder / name)
    return folder


@pytest.fixture(scope="module")
def findings(bases_folder):
    """Of each number of ranks, when it is first asked for."""
    found = {}

    def of(world_size: int):
        if world_size not in found:
            found[world_size] = run_ranks(bases_folder / f"of-{world_size}", world_size)
        return found[world_size]

    return of


def run_ranks(folder: Path, world_size: int) -> list[dict]:
    folder.mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "LOCAL_RANK")}
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world_size)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(printed)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


def files_of(bases_folder: Path, world_size: int, name: str) -> dict[str, torch.Tensor]:
    """The published tensors of one case, by file and name."""
    found = {}
    for file in (bases_folder / f"of-{world_size}").glob(f"{name}+*"):
        for key, tensor in load_file(file).items():
            found[f"{file.name.removeprefix(name)}/{key}"] = tensor
    return found


ranks = pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])


@ranks
@pytest.mark.parametrize(("name", "stage", "offload"), CASES)
def test_losses_are_those_of_plain_torch_on_one_rank(findings, world_size, name, stage, offload):
    expected = findings(1)[0]["curves"][label(name, 0, False)]
    for rank in findings(world_size):
        curve = rank["curves"][label(name, stage, offload)]
        assert curve == pytest.approx(expected, rel=LOSS_TOLERANCE)


UNREAD = (
    "+text_encoder.safetensors/encoder.layers.2.",
    "+text_encoder.safetensors/final_layer_norm.",
)
"""XL reads the last but one layer: what follows has no gradient, and ZeRO decays it all the same.

Neither has the bias of keys a gradient: softmax ignores what all keys share.
"""


@ranks
@pytest.mark.parametrize(("name", "stage", "offload"), CASES)
def test_weights_are_those_of_plain_torch_on_one_rank(
    findings, bases_folder, world_size, name, stage, offload
):
    assert findings(1)
    assert findings(world_size)
    expected = files_of(bases_folder, 1, label(name, 0, False))
    found = files_of(bases_folder, world_size, label(name, stage, offload))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key.endswith("k_proj.bias") or key.startswith(UNREAD):
            continue
        # A gradient that is nearly 0 may turn round, and Adam's steps are as long as the rate
        # whatever the gradient is: so the mean is compared.
        steps = 4 * RECIPES[name][1].learning_rate
        assert (found[key] - tensor).abs().mean() < 0.01 * steps, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora", "textual_inversion"])
def test_stage_3_shares_out_frozen_weights_too(findings, name):
    alone = findings(1)[0]["held"][label(name, 0, False)]
    for rank in findings(2):
        shared = rank["held"][label(name, 3, False)]
        assert shared == {kind: size // 2 for kind, size in alone.items()}
        assert rank["held"][label(name, 2, False)] == alone


@ranks
def test_parameters_without_gradients_stay_as_they_are(findings, bases_folder, world_size):
    assert findings(world_size)
    published = files_of(bases_folder, world_size, label("full of sdxl", 0, False))
    base = load_file(bases_folder / "sdxl" / "text_encoder" / "model.safetensors")
    moved = {
        name: not torch.equal(published[f"+text_encoder.safetensors/{name}"], tensor)
        for name, tensor in base.items()
    }
    last = max(name for name in base if ".layers." in name).split(".layers.")[1][0]
    unread = {name for name in base if f".layers.{last}." in name or "final_layer_norm" in name}
    assert {name for name, has_moved in moved.items() if not has_moved} == unread


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
