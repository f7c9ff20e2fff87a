"""A LoRA in diffusers' keys: the published file under the name that diffusers looks for."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from dbray.bases import SUPER_RESOLUTION
from dbray.export import ENLARGER, card
from dbray.export.embeddings import load_line, to_embedding, vectors_of, why_no_key
from dbray.export.source import Source
from dbray.method.lora import FILE as PUBLISHED

SUFFIX = ""
FILE = "pytorch_lora_weights.safetensors"
EMBEDDING = "learned_embeds.safetensors"


def why_not(source: Source) -> str | None:
    """See Format."""
    return source.why_no_factors() or (why_no_key(source) if source.has_tokens else None)


def export(source: Source, output: Path) -> str:
    """See Format; learnt embeddings lie beside the factors, and a second stage in a folder."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.files[PUBLISHED], output / FILE)
    line = source.load_lora(output / FILE)
    if source.second is not None:
        line += f"; {_write_second(source.second, output / SUPER_RESOLUTION)}"
    if source.has_tokens:
        save_file(to_embedding(vectors_of(source)), output / EMBEDDING)
        line += f"; {load_line(source, output / EMBEDDING)}"
    card.write(source, output, line, has_own_token=source.has_tokens)
    return line


def _write_second(source: Source, output: Path) -> str:
    """Write the LoRA of a second stage, if it has one; return Python that loads the stage."""
    if PUBLISHED not in source.files:
        return source.load_base(ENLARGER)
    output.mkdir()
    shutil.copyfile(source.files[PUBLISHED], output / FILE)
    return source.load_lora(output / FILE, ENLARGER)
