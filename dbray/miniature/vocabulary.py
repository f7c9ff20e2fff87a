"""The tokenizer of the miniature: a real CLIP byte-pair vocabulary, grown word by word.

Owns vocab.json and merges.txt. Each word of a list gets its missing merges after those of all
earlier words; a later merge has a higher rank than any that an earlier word needs, so every word
of the list stays one token. This makes rare tokens: short strings that are not words and are in no
caption, but are one token of the tokenizer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dbray.miniature.captions import (
    ALIASES,
    PATTERN_WORDS,
    PHOTO_PREFIXES,
    PLACE_PHRASES,
    STYLE_PREFIXES,
    STYLE_SUFFIXES,
)
from dbray.miniature.networks import TEXT_LENGTH
from dbray.miniature.words import ABBREVIATIONS, ENGLISH
from dbray.miniature.world import CLASS_NOUNS, COLOURS, PATTERNS
from dbray.miniature.world.faces import ACCESSORIES, EXPRESSIONS

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
NUM_RARE = 1_400
CONSONANTS = "bcdfghjklmnpqrstvwxz"
FAMOUS_RARE = ("sks", "zwx", "qov", "ohwx", "xjy")


def caption_words() -> list[str]:
    """Return every word that a caption can contain, sorted."""
    phrases: list[str] = [*CLASS_NOUNS, *COLOURS, *PATTERNS, *ACCESSORIES, *EXPRESSIONS]
    phrases += [*PHOTO_PREFIXES, *PATTERN_WORDS.values()]
    for table in (PLACE_PHRASES, ALIASES, STYLE_PREFIXES, STYLE_SUFFIXES):
        phrases += itertools.chain.from_iterable(table.values())
    phrases += ["a", "an", "with", "wearing", "seen from behind", "a close-up photo of"]
    return sorted({word for phrase in phrases for word in phrase.replace("-", " ").split()})


def rare_strings(seed: int = 0) -> list[str]:
    """Return strings of two or three letters that are not words, shuffled."""
    known = {*ENGLISH, *ABBREVIATIONS, *caption_words()}
    triples = ["".join(letters) for letters in itertools.product(CONSONANTS, repeat=3)]
    pairs = ["".join(letters) for letters in itertools.product("bcdfghjkqvwxz", repeat=2)]
    strings = [s for s in (*pairs, *triples) if s not in known and len(set(s)) > 1]
    order = np.random.default_rng(seed).permutation(len(strings))
    return [*FAMOUS_RARE, *(strings[i] for i in order)][:NUM_RARE]


def grow_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return merges, in rank order, with which every one of `words` is a single token."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _segment([*word[:-1], word[-1] + WORD_END], ranks)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            ranks.setdefault(pair, len(ranks))
            pieces = _segment([*word[:-1], word[-1] + WORD_END], ranks)
    return sorted(ranks, key=lambda pair: ranks[pair])


def _segment(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces = [*pieces[:at], best[0] + best[1], *pieces[at + 2 :]]
    return pieces


def byte_symbols() -> list[str]:
    """Return the printable symbols of the 256 bytes, in GPT-2's and CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = grow_merges([*caption_words(), *ENGLISH, *rare_strings()])
    symbols = byte_symbols()
    tokens: Sequence[str] = [
        *symbols,
        *(symbol + WORD_END for symbol in symbols),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    unique = list(dict.fromkeys(tokens))
    vocabulary = {token: index for index, token in enumerate(unique)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TEXT_LENGTH,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "errors": "replace",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
