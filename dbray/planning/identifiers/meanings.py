"""Words that mean something to a base already: a bundled list, and an English dictionary."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

_DICTIONARY = "frequency_dictionary_en_82_765.txt"


@cache
def bundled() -> dict[str, str]:
    """The bundled list: for each word, the title of the first section that has it.

    Titles complete the sentence "'word' is ...".
    """
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    meanings: dict[str, str] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("["):
            title = line.strip("[]")
        elif not line.startswith("#"):
            for word in line.split():
                meanings.setdefault(word, title)
    return meanings


@cache
def english() -> frozenset[str]:
    """Words of an English dictionary, in lower case."""
    text = files("symspellpy").joinpath(_DICTIONARY).read_text(encoding="utf-8-sig")
    return frozenset(line.split()[0] for line in text.splitlines())
