"""The diffusers folder: a base with a model's weights in it, which any diffusers program loads.

All models are written in float32, in which dbray samples: libraries differ in what they make of a
folder of several types. The scheduler is the sampler of `dbray generate`, so that the pipeline
draws the same image for the same seed. Where a base has a `steps_offset` of 0, or another setting
that the pipeline replaces when it loads, it does not.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from dbray.bases import FIRST, SUPER_RESOLUTION
from dbray.bases.layout import INDEX_FILE
from dbray.export import ENLARGER, card
from dbray.export.source import Source
from dbray.spec.sections import Previews, Sampler

SUFFIX = ""
RECORD_FILE = "dbray.json"


def why_not(source: Source) -> str | None:
    """See Format: every model can have it."""


def export(source: Source, output: Path) -> str:
    """See Format. A cascade is two folders, as a base that is one."""
    if source.second is None or source.stage is None:
        line = f"import diffusers; {_write(source, output, 'pipe', _sampler_of(source))}"
    else:
        first = _write(source.first, output / FIRST, "pipe", _sampler_of(source))
        second = _write(source.second, output / SUPER_RESOLUTION, ENLARGER, source.stage.sampler)
        line = f"import diffusers; {first}; {second}"
    if source.record:
        about = source.record.model_dump_json(indent=1)
        (output / RECORD_FILE).write_text(about, encoding="utf-8")
    card.write(source, output, line)
    return line


def _sampler_of(source: Source) -> Sampler:
    return source.base.fill(Previews()).sampler


def _write(source: Source, output: Path, name: str, sampler: Sampler) -> str:
    """Write the folder of one stage; return Python that loads it under a name.

    The index names only what is there: a base may lack its safety checker.
    """
    base, backbone = source.base, source.backbone
    ignored = shutil.ignore_patterns(*backbone.models, "scheduler", "README.md")
    shutil.copytree(base.folder, output, ignore=ignored, dirs_exist_ok=True)
    for part, model in backbone.models.items():
        written: Any = copy.deepcopy(model)  # tensors of a resident part share their memory
        written.float().save_pretrained(output / part)
    scheduler = base.family.scheduler(sampler, base.layout.config("scheduler"))
    scheduler.save_pretrained(output / "scheduler")
    chosen = {"scheduler": ["diffusers", type(scheduler).__name__]}
    index = _index_of(output, base.layout.index | chosen)
    (output / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return f"{name} = diffusers.{source.pipeline_class}.from_pretrained({str(output)!r})"


def _index_of(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Take from an index the parts that a folder does not hold, as diffusers writes it."""
    absent = [name for name, value in index.items()
              if isinstance(value, list) and not (folder / name).is_dir()]  # fmt: skip
    left = index | {name: [None, None] for name in absent}
    return left | {"requires_safety_checker": False} if "safety_checker" in absent else left
