"""A part of a base built from its configuration alone, without weights, to count what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dbray.errors import BaseError

if TYPE_CHECKING:
    from dbray.bases.layout import Layout


@lru_cache(maxsize=32)
def shapes(layout: Layout, part: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a part's parameters. Raises BaseError."""
    from accelerate import init_empty_weights

    library, _, class_name = layout.family.models[part].partition(".")
    try:
        with init_empty_weights():
            model = _BUILDERS[library](class_name, layout.config(part))
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise BaseError(f"{part} cannot be built from its configuration: {exc!r}") from exc
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return MappingProxyType(found)


def _of_diffusers(class_name: str, config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, class_name).from_config(config)


def _of_transformers(class_name: str, config: dict[str, Any]) -> Any:
    import transformers

    model_class = getattr(transformers, class_name)
    return model_class(model_class.config_class.from_dict(config))


_BUILDERS = {"diffusers": _of_diffusers, "transformers": _of_transformers}
