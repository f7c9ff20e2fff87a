"""The diffusers folder: a base with a model's weights in it, which any diffusers program loads."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from dbray.bases import Backbone
from dbray.bases.layout import INDEX_FILE


def export(backbone: Backbone, folder: Path, half: bool) -> None:
    """Write the base's files, with the changed parts in their place, on request in float16.

    The index names only what is there: a base from the hub came without its safety checker.

    Raises:
        OSError: the folder cannot be written.
    """
    changed = backbone.resident.changed
    ignored = shutil.ignore_patterns(*changed)
    shutil.copytree(backbone.base.folder, folder, ignore=ignored, dirs_exist_ok=True)
    for part in changed:
        written: Any = copy.deepcopy(backbone.models[part])
        (written.half() if half else written).save_pretrained(folder / part)
    index = _index_of(folder, backbone.base.layout.index)
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _index_of(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Take from an index the parts that a folder does not hold, as diffusers writes it."""
    absent = [name for name, value in index.items()
              if isinstance(value, list) and not (folder / name).is_dir()]  # fmt: skip
    left = index | {name: [None, None] for name in absent}
    return left | {"requires_safety_checker": False} if "safety_checker" in absent else left
