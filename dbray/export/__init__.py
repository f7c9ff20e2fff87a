"""Models in the formats of other programs: one file per format, and one line in FORMATS.

Importing this package loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dbray.errors import RegistryError

if TYPE_CHECKING:
    from dbray.export.source import Source

FORMATS = {
    "diffusers": "diffusers",
    "single-file": "single_file",
    "lora": "lora",
    "kohya": "kohya",
    "comfyui": "comfyui",
    "embedding": "embeddings",
}
"""By the name of a format, the module in this folder that fulfils Format."""

OF_CASCADES = ("diffusers", "lora")
"""Formats that hold both stages of a cascade, each in a folder of its own."""
ENLARGER = "enlarger"
"""What the line of Python that loads a cascade calls the pipeline of its second stage."""


class Format(Protocol):
    """What the module of a format holds."""

    SUFFIX: str
    """Of the file that it writes; empty: a folder."""

    def why_not(self, source: Source) -> str | None:
        """Return why a model cannot have this format; None if it can."""
        ...

    def export(self, source: Source, output: Path) -> str:
        """Write a model to `output`; return a line of Python that loads it with diffusers.

        Raises:
            OSError: `output` cannot be written.
        """
        ...


def format_of(name: str) -> Format:
    """Return a format by its name in FORMATS."""
    module: Any = import_module(f"{__name__}.{FORMATS[name]}")
    return module


def why_not(name: str, source: Source) -> str | None:
    """Return why a model cannot have a format; None if it can."""
    if source.second is not None and name not in OF_CASCADES:
        return "it has two stages, and such a file holds one"
    return format_of(name).why_not(source)


def check(name: str, source: Source, output: Path) -> None:
    """Check that a model can have a format, and that it can be written to a path.

    Raises:
        RegistryError: it cannot; the message names the formats that it can have.
    """
    chosen = format_of(name)
    if reason := why_not(name, source):
        possible = [one for one in FORMATS if why_not(one, source) is None]
        raise RegistryError(f"{source.name} cannot be exported as {name}: {reason}; choose "
                            f"--format {' or '.join(possible)}")  # fmt: skip
    is_empty_folder = output.is_dir() and not any(output.iterdir())
    if output.exists() and (chosen.SUFFIX or not is_empty_folder):
        what = "exists" if chosen.SUFFIX else "exists and is not an empty folder"
        raise RegistryError(f"{output} {what}; choose another -o")
    if chosen.SUFFIX and output.suffix != chosen.SUFFIX:
        raise RegistryError(f"{name} is one file, whose name has to end in {chosen.SUFFIX}; give "
                            f"-o {output}{chosen.SUFFIX}")  # fmt: skip
