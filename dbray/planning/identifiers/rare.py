"""The tokens of a base's vocabulary that may name a subject.

Where tokens are frequent differs: CLIP's ids are ranks of merges, and even its 10,000th token is
more frequent than "elephant", so candidates are of its last fifth. The paper's range is T5's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dbray.errors import SpecError
from dbray.planning.identifiers.meanings import bundled, english
from dbray.planning.identifiers.vocabulary import InPrompt, Vocabulary, is_byte_pair

MAX_CHARACTERS = 3
PAPER_RANK_RANGE = (5_000, 10_000)
LARGE_VOCABULARY = 20_000
_RARE_FROM = 4 / 5
"""Where the rare end of a byte-pair vocabulary begins."""


def is_large(tokenizer: Vocabulary) -> bool:
    """Whether a vocabulary is that of a real text encoder, with more rare tokens than needed."""
    return len(tokenizer.get_vocab()) >= LARGE_VOCABULARY


def default_rank_range(tokenizer: Vocabulary) -> tuple[int, int]:
    """Return all of a small vocabulary, the rare end of byte pairs, else the paper's range."""
    last = max(tokenizer.get_vocab().values(), default=0) + 1
    if not is_large(tokenizer):
        return 0, last
    return (int(last * _RARE_FROM), last) if is_byte_pair(tokenizer) else PAPER_RANK_RANGE


def candidates(
    tokenizer: Vocabulary, rank_range: tuple[int, int] | None, words_in_use: Iterable[str]
) -> list[str]:
    """List the tokens that may name a subject, most frequent first.

    Each has 2 or 3 ASCII letters or digits, is one token inside a prompt, and is neither one of
    `words_in_use` (class nouns and prompts; whole sentences may be passed) nor of the bundled list;
    in a large vocabulary, it is not in an English dictionary either. Single characters are left
    out because the base's prior for them is strong (section 3.2), and characters beyond ASCII
    because an identifier is typed into shells and URLs.

    Args:
        tokenizer: Of the base that is fine-tuned.
        rank_range: Token ids, first included, last not; None for `default_rank_range`.
        words_in_use: Class nouns and prompts of the job.

    Raises:
        SpecError: when the range is empty or beyond the vocabulary.
    """
    ids = sorted(tokenizer.get_vocab().values())
    first, last = rank_range or default_rank_range(tokenizer)
    in_range = [index for index in ids if first <= index < last]
    if not in_range:
        what = f"[{first}, {last}) holds no token of the base's vocabulary of {len(ids)}"
        fix = f"choose a range within [0, {ids[-1] + 1}), or leave rank_range out"
        raise SpecError.of("identifiers.rank_range", what, fix)
    prompt = InPrompt(tokenizer)
    dictionary = english() if is_large(tokenizer) else ()
    found: dict[str, str] = {}  # by lower case: people would confuse 'Qxz' and 'qxz'
    for index in in_range:
        text = prompt.piece(index)
        if text.lower() not in dictionary and _is_candidate(text, index, prompt):
            found.setdefault(text.lower(), text)
    return unused(found.values(), words_in_use)


def was_candidate(tokenizer: Vocabulary, word: str) -> bool:
    """Whether earlier versions, which used the paper's range everywhere, would draw a word."""
    prompt = InPrompt(tokenizer)
    first, last = PAPER_RANK_RANGE
    match prompt.encode(word):
        case [index]:
            is_drawn = prompt.piece(index) == word and _is_candidate(word, index, prompt)
            return first <= index < last and is_drawn
    return False


def unused(tokens: Iterable[str], words_in_use: Iterable[str]) -> list[str]:
    """Leave out the tokens that are words of class nouns and prompts."""
    in_use = words_of(words_in_use)
    return [token for token in tokens if token.lower() not in in_use]


def words_of(texts: Iterable[str]) -> set[str]:
    """Split texts into lower-case words; placeholders such as {subject} do no harm."""
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


def _is_candidate(text: str, index: int, prompt: InPrompt) -> bool:
    return _is_plain(text) and text.lower() not in bundled() and prompt.is_one_token(index)


def _is_plain(text: str) -> bool:
    return (
        2 <= len(text) <= MAX_CHARACTERS
        and text.isascii()
        and text.isalnum()
        and not text.isdigit()  # a number counts things
    )
