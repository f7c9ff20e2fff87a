"""Single files: the original names, as diffusers' own converters read them."""

from __future__ import annotations

import json

import pytest
import torch
from kit.bases import build_tiny_base
from kit.families import FAMILIES

from dbray import bases
from dbray.export.single_file import export, to_single_file, why_not
from dbray.export.source import Source


@pytest.fixture(scope="module")
def version_2(tmp_path_factory):
    """A tiny base whose text encoder is OpenCLIP's, by its activation."""
    folder = build_tiny_base(tmp_path_factory.mktemp("version2") / "base")
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "gelu"}))
    return Source(bases.resolve(str(folder)))


def test_diffusers_reads_every_tensor_of_version_2(version_2, tmp_path):
    found = {}
    exec(export(version_2, tmp_path / "base.safetensors"), found)
    for part, model in version_2.backbone.models.items():
        read = getattr(found["pipe"], part).state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(read[name], tensor.half().float()), f"{part} {name}"


def test_names_differ_between_versions(version_2, tiny_base):
    encoder = "cond_stage_model"
    of_1 = to_single_file(Source(bases.resolve(str(tiny_base))))
    assert f"{encoder}.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight" in of_1
    of_2 = to_single_file(version_2)
    block = f"{encoder}.model.transformer.resblocks"
    width = 16
    assert of_2[f"{block}.0.attn.in_proj_weight"].shape == (3 * width, width)
    assert f"{block}.1.ln_2.bias" in of_2, "the layer that diffusers leaves out"
    shape = of_1["first_stage_model.encoder.mid.attn_1.q.weight"].shape
    assert len(shape) == 4
    assert "model.diffusion_model.input_blocks.0.0.weight" in of_1


def test_xl_has_the_names_of_its_authors(tmp_path):
    tiny = FAMILIES["sdxl"]
    base = bases.resolve(str(tiny.build(tmp_path / "base")))
    found = to_single_file(Source(base))
    second = "conditioner.embedders.1.model"
    assert "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight" in found
    assert found[f"{second}.text_projection"].shape == (24, 32), "from width to projection"
    layers = {key.split(".")[6] for key in found if key.startswith(f"{second}.transformer.")}
    assert len(layers) == base.layout.config("text_encoder_2")["num_hidden_layers"]
    assert "model.diffusion_model.label_emb.0.0.weight" in found
    assert "v_pred" not in found


def test_an_exported_xl_with_v_prediction_is_marked(tmp_path):
    folder = FAMILIES["sdxl"].build(tmp_path / "base")
    file = folder / "scheduler" / "scheduler_config.json"
    changed = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert {"v_pred", "ztsnr"} <= to_single_file(Source(bases.resolve(str(folder)))).keys()
    found = {}
    exec(export(Source(bases.resolve(str(folder))), tmp_path / "xl.safetensors"), found)
    assert found["pipe"].unet.config.addition_embed_type == "text_time"


def test_other_pipelines_are_rejected(version_2, monkeypatch):
    assert why_not(version_2) is None
    monkeypatch.setitem(version_2.base.layout.index, "_class_name", "FluxPipeline")
    assert why_not(version_2) == "single files are of Stable Diffusion 1, 2 and XL"
