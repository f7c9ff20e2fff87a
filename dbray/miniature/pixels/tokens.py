"""The tokenizer of the cascade: a SentencePiece unigram vocabulary in T5's layout.

Owns its pieces, their ids and scores. As in T5's own, frequent pieces have low ids: first the words
of captions by how often captions hold them, then English words, letters and fragments of words, and
from id 5,000 on strings that are rare. Every word is one piece: any two pieces score less than one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dbray.miniature.captions import fine_caption
from dbray.miniature.vocabulary import caption_words, rare_strings
from dbray.miniature.words import ABBREVIATIONS, ENGLISH
from dbray.miniature.world import scenes

SPECIAL = ("<pad>", "</s>", "<unk>")
SPACE = "\u2581"
RARE_FROM = 5_000
"""The identifiers of the paper are T5's tokens from 5,000 to 10,000."""

NUM_CAPTIONS = 4_000
LOWEST = -17.0
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"-_()"


@cache
def pieces() -> tuple[tuple[str, float], ...]:
    """Return every piece with its score, a logarithm of how likely it is, in order of ids."""
    counts = _count_words()
    total = sum(counts.values())
    frequent = [(SPACE + word, math.log(count / total)) for word, count in counts.most_common()]
    others = [word for word in (*caption_words(), *ENGLISH, *ABBREVIATIONS) if word not in counts]
    names = [SPACE, *(SPACE + word for word in dict.fromkeys(others))]
    names += [*LETTERS, *(SPACE + letter for letter in LETTERS)]
    known = {name for name, _ in frequent}
    names = [name for name in dict.fromkeys(names) if name not in known]
    room = RARE_FROM - len(SPECIAL) - len(frequent) - len(names)
    names += _fragments(room)
    names += [SPACE + string for string in rare_strings()]
    scores = np.linspace(-10.0, LOWEST, len(names)).tolist()
    return (*((name, 0.0) for name in SPECIAL), *frequent, *zip(names, scores, strict=True))


def _count_words() -> Counter[str]:
    rng = np.random.default_rng(17)
    drawn = itertools.islice(scenes(17), NUM_CAPTIONS)
    return Counter(word for scene in drawn for word in fine_caption(scene, rng).split())


def _fragments(count: int) -> list[str]:
    """Return the commonest parts of words, of two to four letters, then others of three."""
    found: Counter[str] = Counter()
    for word in (*ENGLISH, *caption_words()):
        for size in (2, 3, 4):
            found.update(word[at : at + size] for at in range(1, len(word) - size + 1))
    ordered = [name for name, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
    triples = ("".join(letters) for letters in itertools.product("aeioubcdfghlmnprst", repeat=3))
    return list(itertools.islice(dict.fromkeys([*ordered, *triples]), count))


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write the tokenizer, which `transformers.T5Tokenizer` reads."""
    from transformers import T5Tokenizer

    tokenizer: Any = T5Tokenizer(vocab=list(pieces()), extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a folder."""
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(folder, local_files_only=True)
