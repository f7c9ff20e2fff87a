"""The methods of fine-tuning that a recipe may name, and the settings of each.

A user writes the plain word (`method: full`), or its settings under it (`method: {kind: full,
...}`). What a method does with them is in `dbray/method/<kind>.py`. To add one: that file, its
settings in `Method`, and its name in `Kind` below.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, model_serializer

from dbray.spec.base import Spec


class MethodSettings(Spec):
    """Base of the settings of one method."""

    first_fields = frozenset({"kind"})
    why_not_packed: ClassVar[str | None] = None
    """Why several subjects cannot train together, as the end of a sentence; None if they can."""

    kind: str

    @model_serializer(mode="wrap")
    def _as_written(self, dump: Any) -> Any:
        """The plain word, where no setting is chosen."""
        chosen = self.model_fields_set - {"kind"}
        return dump(self) if chosen else self.kind

    def identity(self) -> Any:
        """See Spec; the plain word of a method without settings."""
        fields = super().identity()
        return self.kind if fields.keys() == {"kind"} else fields


class Delta(Spec):
    """The change of whole layers as low-rank factors."""

    first_fields = frozenset({"kind", "rank"})

    kind: Literal["delta"] = "delta"
    rank: int = Field(
        default=32, ge=1, le=1024, description="Rank of the factors: more is larger and closer."
    )


def _delta(publish: Any) -> Any:
    """Take the plain word for its settings."""
    return {"kind": publish} if isinstance(publish, str) else publish


class Full(MethodSettings):
    """Every layer of the denoiser is fine-tuned, as in the paper."""

    why_not_packed = "change the base's own weights, and cannot share them"

    kind: Literal["full"] = "full"  # pyright: ignore[reportIncompatibleVariableOverride]
    publish: Annotated[Delta | None, BeforeValidator(_delta)] = Field(
        default=None,
        description="delta: publish the change of the weights as factors of a `rank`, instead of "
        "whole parts; its error is measured. Absent: whole parts.",
    )


class Lora(MethodSettings):
    """Low-rank factors beside the weights of some layers (Hu et al. 2021, arXiv 2106.09685)."""

    first_fields = MethodSettings.first_fields | {"rank", "alpha", "targets", "dora"}

    kind: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride]
    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the factors.")
    alpha: float | None = Field(
        default=None, gt=0, description="Factors count alpha / rank times; absent: as the rank."
    )
    targets: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Layers to train: attention, feed_forward, convolutions, or ends of their "
        "paths such as to_q. Absent: what suits the base's family.",
    )
    dora: bool = Field(
        default=False, description="Learn magnitudes too (Liu et al. 2024, arXiv 2402.09353)."
    )


class TextualInversion(MethodSettings):
    """The embeddings of the identifier's tokens alone (Gal et al. 2022, arXiv 2208.01618)."""

    kind: Literal["textual_inversion"] = "textual_inversion"  # pyright: ignore[reportIncompatibleVariableOverride]


class Pivotal(Lora):
    """Low-rank factors, and the embeddings of the identifier's tokens."""

    kind: Literal["pivotal"] = "pivotal"  # pyright: ignore[reportIncompatibleVariableOverride]


def _spelt_out(method: Any) -> Any:
    """Take the plain word for its settings; name the methods where it is none of them."""
    if isinstance(method, MethodSettings):
        return method
    settings = method if isinstance(method, dict) else {"kind": method}
    if settings.get("kind") not in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f"unknown method {settings.get('kind')!r}; the methods are: {known}")
    return settings


Method = Annotated[
    Full | Lora | TextualInversion | Pivotal, Discriminator("kind"), BeforeValidator(_spelt_out)
]

Kind = Literal["full", "lora", "textual_inversion", "pivotal"]
_KINDS = get_args(Kind)
