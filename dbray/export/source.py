"""The model that is exported: its base, its record and its files, loaded when a format needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dbray import bases
from dbray.bases import Backbone, Base, Compute
from dbray.bases.defaults import fill_super_resolution
from dbray.method import delta, lora, tokens
from dbray.method.factors import Adapters
from dbray.method.stages import of_first, of_second, put
from dbray.records.models import ModelRecord
from dbray.spec.canon import UNTOUCHED
from dbray.spec.super_resolution import SuperResolution


@dataclass(frozen=True)
class Source:
    """A published model on this machine; without a record it is the untouched base."""

    base: Base
    record: ModelRecord | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"

    @cached_property
    def second(self) -> Source | None:
        """The second stage of a cascade, as a model of its own; None without one."""
        base = self.base.super_resolution
        if base is None:
            return None
        if self.record is None:
            return Source(base, device=self.device)
        if (stage := self.record.super_resolution) is None:
            return None
        record = self.record.model_copy(update={"recipe": stage.recipe, "super_resolution": None})
        return Source(base, record, of_second(self.files), self.device)

    @cached_property
    def first(self) -> Source:
        """The stage that draws, as a model of its own."""
        base = replace(self.base, super_resolution=None)
        record = self.record and self.record.model_copy(update={"super_resolution": None})
        return Source(base, record, of_first(self.files), self.device)

    @property
    def stage(self) -> SuperResolution | None:
        """How the second stage enlarges."""
        if self.record is None:
            return fill_super_resolution(self.base, None)
        return self.record.super_resolution

    @property
    def name(self) -> str:
        """'id@revision', or 'base'."""
        return self.record.name if self.record else UNTOUCHED

    @cached_property
    def backbone(self) -> Backbone:
        """The base with the model's weights in it."""
        if self.record is None:
            return bases.load(self.base, Compute(self.device).through(self.base))
        record = self.record
        compute = Compute.of(self.device, record.recipe, record.super_resolution)
        backbone = bases.load(self.base, compute)
        put(backbone, record, self.files)
        return backbone

    @cached_property
    def adapter(self) -> Adapters:
        """The low-rank factors. Raises BaseError where they cannot be read."""
        return lora.read_file(self.files[lora.FILE])

    @property
    def has_tokens(self) -> bool:
        """Whether the embeddings of the identifier's tokens were learnt."""
        return tokens.FILE in self.files

    @property
    def has_rest(self) -> bool:
        """Whether biases, norms and small layers were changed too, which no LoRA file holds."""
        return delta.FILE in self.files

    @property
    def token(self) -> str:
        """The word that stands for learnt embeddings in other programs' prompts."""
        return f"<{self.record.id}>" if self.record else ""

    @property
    def pipeline_class(self) -> str:
        """The class of diffusers' pipeline for the base."""
        return self.base.layout.index["_class_name"]

    def denoiser_config(self) -> dict[str, Any]:
        """The configuration of the base's denoiser."""
        return self.base.layout.config(self.base.family.denoiser)

    def why_no_factors(self) -> str | None:
        """Say why there is no LoRA to export; None if there is one."""
        return None if lora.FILE in self.files else "it has no low-rank factors"

    def load_base(self, name: str = "pipe") -> str:
        """A line of Python that loads the base under a name, in float32."""
        place = f"{self.base.name!r}, revision={self.base.revision!r}"
        if self.base.revision is None:
            place = repr(str(self.base.folder))
        load = f"diffusers.{self.pipeline_class}.from_pretrained"
        return f"import diffusers, torch; {name} = {load}({place}, torch_dtype=torch.float32)"

    def load_lora(self, file: Path, name: str = "pipe") -> str:
        """A line of Python that loads the base, and a LoRA file onto it."""
        where = f"{str(file.parent)!r}, weight_name={file.name!r}"
        return f"{self.load_base(name)}; {name}.load_lora_weights({where})"
