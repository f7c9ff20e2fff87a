"""The methods of fine-tuning that a recipe may name, and the settings of each.

A user writes the plain word (`method: full`), or its settings under it (`method: {kind: full,
...}`). What a method does with them is in `dbray/method/<kind>.py`. To add one: that file, and its
settings in `Method` below.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, model_serializer

from dbray.spec.base import Spec


class MethodSettings(Spec):
    """Base of the settings of one method."""

    first_fields = frozenset({"kind"})

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


class Full(MethodSettings):
    """Every layer of the denoiser is fine-tuned, as in the paper."""

    kind: Literal["full"] = "full"  # pyright: ignore[reportIncompatibleVariableOverride]


def _spelt_out(method: Any) -> Any:
    """Take the plain word for its settings; name the methods where it is none of them."""
    if isinstance(method, MethodSettings):
        return method
    settings = method if isinstance(method, dict) else {"kind": method}
    if settings.get("kind") not in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f"unknown method {settings.get('kind')!r}; the methods are: {known}")
    return settings


Method = Annotated[Full, BeforeValidator(_spelt_out)]

_KINDS = tuple(get_args(settings.model_fields["kind"].annotation)[0] for settings in (Full,))
