"""The model card: README.md beside an exported folder, as the Hugging Face hub shows it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dbray.export import ENLARGER
from dbray.export.source import Source
from dbray.records.models import ModelRecord
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews

FILE = "README.md"


def write(source: Source, folder: Path, line: str, *, has_own_token: bool = False) -> None:
    """Write the card of a model into a folder; the untouched base has none.

    Args:
        source: the model.
        folder: where README.md goes.
        line: Python that loads the folder as `pipe`.
        has_own_token: whether learnt embeddings are used through `source.token`.
    """
    if source.record is None:
        return
    identifier = source.token if has_own_token else source.record.identifier
    noun = fill_prompt("{class}", source.record.class_noun)
    prompt = fill_prompt("a photo of a {subject}", source.record.class_noun, identifier)
    text = f"""---
{yaml.safe_dump(_header(source, prompt), sort_keys=False, allow_unicode=True).strip()}
---

# {source.record.id}

A {noun}, fine-tuned with DreamBooth (arXiv 2208.12242) by dbray.

{_table(_facts(source, source.record, prompt))}

The licence of the base applies to this model too. Ask those whose property or likeness the
photographs show before you share it.

```python
{_example(source, line, prompt)}
```
"""
    (folder / FILE).write_text(text, encoding="utf-8")


def _header(source: Source, prompt: str) -> dict[str, Any]:
    """What the hub reads; only a base from the hub can be named there."""
    base = {"base_model": source.base.name} if source.base.revision else {}
    return {
        **base,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "dreambooth", "dbray"],
        "instance_prompt": prompt,
    }


def _facts(source: Source, record: ModelRecord, prompt: str) -> dict[str, str]:
    base = source.base
    # The path of a folder says more about its owner's machine than about the base.
    name = f"{base.name} at {base.revision}" if base.revision else Path(base.name).name
    version = record.versions.get("dbray", metadata.version("dbray"))
    return {
        "base": f"{name} (digest {record.base_digest[:12]})",
        "identifier": record.identifier or "none",
        "prompt": prompt,
        "recipe": record.recipe.model_dump_json(exclude_unset=True),
        "steps": str(record.steps),
        "revision": record.revision,
        "created": record.created_at,
        "dbray": version,
        **record.metadata,
    }


def _table(facts: dict[str, str]) -> str:
    rows = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _example(source: Source, line: str, prompt: str) -> str:
    """Python that draws what `dbray generate` draws with its defaults."""
    chosen = source.base.fill(Previews())
    return "\n".join([
        *line.split("; "),
        "import torch",
        f"image = pipe({prompt!r}, num_inference_steps={chosen.steps}, "
        f"guidance_scale={chosen.guidance}, generator=torch.Generator().manual_seed(0)).images[0]",
        *_enlarging(source, prompt),
    ])  # fmt: skip


def _enlarging(source: Source, prompt: str) -> list[str]:
    """Python that enlarges the image, at the noise level of the model."""
    stage = source.stage
    if source.second is None or stage is None:
        return []
    return [
        f"image = {ENLARGER}({prompt!r}, image=image, noise_level={stage.noise_level}, "
        f"num_inference_steps={stage.steps}, guidance_scale={stage.guidance}, "
        "generator=torch.Generator().manual_seed(0)).images[0]"
    ]
