"""The layout of a base on disk: all that a diffusers folder has to hold before it is worth loading.

Owns the names of its files and what is checked in them, so that `dbray validate` finds in seconds
what would else fail on a cluster. Reads configurations and the headers of weights, never tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dbray.errors import BaseError, SpecError
from dbray.spec.findings import parse_yaml, problems_of, read_text
from dbray.spec.sections import Previews, Prior, Recipe, Spec

INDEX_FILE = "model_index.json"
DEFAULTS_FILE = "dbray.yaml"
SUFFIXES = (".json", ".safetensors", ".txt")
PREDICTIONS = ("epsilon", "v_prediction")

_CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PARTS = tuple(_CONFIGS)
_VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
_LENGTH_BYTES = 8
_SAVE_ANEW = "write the folder anew with save_pretrained, without a variant"


class Defaults(Spec):
    """What the makers of a base recommend: the file `dbray.yaml` in its folder."""

    recipe: Recipe = Recipe()
    prior: Prior = Prior()
    previews: Previews = Previews()


def check(folder: Path) -> None:
    """Raise BaseError where a folder is no complete base of a family that dbray knows."""
    if not (folder / INDEX_FILE).is_file():
        raise BaseError(f"{folder} holds no {INDEX_FILE}, so it is no diffusers folder; give the "
                        "folder that save_pretrained wrote")  # fmt: skip
    read_object(folder / INDEX_FILE)
    _check_family(*(config(folder, part) for part in _WEIGHTS))
    _check_schedule(config(folder, "scheduler"))
    resolution(folder)
    config(folder, "tokenizer")
    _check_vocabulary(folder / "tokenizer")
    for part in _WEIGHTS:
        num_parameters(folder, part)


def config(folder: Path, part: str) -> dict[str, Any]:
    """Read the configuration of a part. Raises BaseError."""
    return read_object(folder / part / _CONFIGS[part])


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises BaseError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BaseError(f"{file.parent.name} has no readable {file.name}: {exc}; "
                        "copy or download the base again") from exc  # fmt: skip
    if not isinstance(value, dict):
        raise BaseError(f"{file} is no JSON object; copy or download the base again")
    return value


def resolution(folder: Path) -> int:
    """Side in pixels of the images that the base was trained on. Raises BaseError."""
    side = config(folder, "unet").get("sample_size")
    levels = config(folder, "vae").get("block_out_channels")
    if not isinstance(side, int) or not isinstance(levels, list) or not levels:
        raise BaseError(
            f"the size of its images is not told: sample_size of {folder / 'unet' / 'config.json'} "
            f"is {side!r}, block_out_channels of the vae's {levels!r}; set sample_size to the side "
            "of the latents, which is 64 for 512 pixels"
        )
    return side * 2 ** (len(levels) - 1)


def num_parameters(folder: Path, part: str) -> int:
    """Number of parameters of a part, by the headers of its weight files. Raises BaseError."""
    return sum(_count_parameters(file) for file in _weight_files(folder / part))


def read_defaults(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what the makers recommend, only what they name; {} where they are silent.

    Raises:
        BaseError: with every mistake in the file.
    """
    file = folder / DEFAULTS_FILE
    if not file.is_file():
        return {}
    lines = None
    try:
        data, lines = parse_yaml(read_text(file), file)
        return Defaults.model_validate({} if data is None else data).model_dump(exclude_unset=True)
    except SpecError as exc:
        problems = exc.problems
    except ValidationError as exc:
        problems = problems_of(exc, str(file), lines)
    raise BaseError("; ".join(f"{one.where}: {one.what}: {one.fix}" for one in problems))


def _check_family(unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any]) -> None:
    """Refuse pipelines that need more than noisy latents and one text. Raises BaseError."""
    found = [unet.get("_class_name"), vae.get("_class_name"), text.get("model_type")]
    if found != ["UNet2DConditionModel", "AutoencoderKL", "clip_text_model"]:
        reason = f"its parts are {', '.join(map(str, found))}"
    elif unet.get("addition_embed_type") is not None:
        reason = f"its UNet asks for {unet['addition_embed_type']!r} beside the text"
    elif unet.get("in_channels") != vae.get("latent_channels"):
        reason = (f"its UNet takes {unet.get('in_channels')} channels, its latents have "
                  f"{vae.get('latent_channels')}")  # fmt: skip
    else:
        return
    raise BaseError(f"it is no Stable Diffusion 1.x or 2.x text-to-image model: {reason} "
                    "(SDXL, inpainting and other families are not supported); choose "
                    "another base")  # fmt: skip


def _check_schedule(schedule: dict[str, Any]) -> None:
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise BaseError(f"it predicts {prediction!r}, of which dbray knows only "
                        f"{' and '.join(PREDICTIONS)}; choose another base")  # fmt: skip


def _check_vocabulary(folder: Path) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise BaseError(f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt; "
                        "copy or download the base again")  # fmt: skip


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a part's weights: one, or the shards that an index names."""
    whole = folder / _WEIGHTS[folder.name]
    index = whole.with_name(f"{whole.name}.index.json")
    if whole.is_file() or not index.is_file():
        return [whole]
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BaseError(f"{index} names no files; {_SAVE_ANEW}")
    return [folder / name for name in sorted({str(name) for name in shards.values()})]


def _count_parameters(file: Path) -> int:
    """Count by the header of a safetensors file: 8 bytes of length, then JSON. Raises BaseError."""
    if not file.is_file():
        others = sorted(one.name for one in file.parent.glob("*") if one.suffix != ".json")
        raise BaseError(
            f"no {file.name} in {file.parent}, only {', '.join(others[:3]) or 'nothing'}: "
            f"dbray reads neither pickles nor variants such as fp16; {_SAVE_ANEW}"
        )
    size_bytes = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if length > size_bytes:
                raise ValueError(f"its header should have {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if _LENGTH_BYTES + length + end != size_bytes:
            raise ValueError(f"it should have {_LENGTH_BYTES + length + end} bytes")
        return sum(math.prod(entry["shape"]) for entry in header.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise BaseError(f"{file} is no whole safetensors file ({size_bytes} bytes: {exc}); "
                        "copy or download it again") from exc  # fmt: skip
