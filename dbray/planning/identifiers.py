"""Identifiers: the rare-token strings that name a subject to the base.

Owns which tokens of a base's vocabulary may name a subject, which subject gets which, and what
there is to say against an identifier that a user chose. Knows the tokenizer only as an object
handed to it; knows neither registry nor manifest: who holds an identifier already is an argument.
Words with a meaning of their own are listed in `identifiers.txt` beside this file.

Source: Ruiz et al. 2022 (arXiv 2208.12242), section 3.2, "Rare-token Identifiers".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from dbray.errors import Problem, SpecError

MAX_CHARACTERS = 3
# The paper's range of T5 ids; CLIP's ids are BPE merge ranks, so they order by frequency as well.
PAPER_RANK_RANGE = (5_000, 10_000)
LARGE_VOCABULARY = 20_000

# The words around an identifier when it is used.
_BEFORE, _AFTER = "a photo of", "dog"


class Vocabulary(Protocol):
    """What is used of a transformers tokenizer."""

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, token_ids: Any) -> Any:
        """Return the text of token ids."""
        ...


def default_rank_range(tokenizer: Vocabulary) -> tuple[int, int]:
    """Return the paper's range for a large vocabulary, else the whole vocabulary."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) >= LARGE_VOCABULARY:
        return PAPER_RANK_RANGE
    return 0, max(vocabulary.values(), default=0) + 1


def candidates(
    tokenizer: Vocabulary, rank_range: tuple[int, int] | None, words_in_use: Iterable[str]
) -> list[str]:
    """List the tokens that may name a subject, most frequent first.

    Each has 2 or 3 ASCII letters or digits, is one token as a word of its own, and is neither a
    word of `words_in_use` (class nouns and prompts, whole sentences may be passed) nor of the
    bundled list. Single characters are left out: the base's prior for them is strong (section
    3.2), and so are tokens beyond ASCII, because an identifier is typed into shells and URLs.

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
    context = _Context(tokenizer)
    found: dict[str, str] = {}  # by lower case: 'Qxz' and 'qxz' would be confused by people
    for index in in_range:
        text = str(tokenizer.decode([index])).strip()
        key = text.lower()
        if _is_plain(text) and key not in _meanings() and context.is_one_token(text, index):
            found.setdefault(key, text)
    return unused(found.values(), words_in_use)


def unused(tokens: Iterable[str], words_in_use: Iterable[str]) -> list[str]:
    """Leave out the tokens that are words of class nouns and prompts."""
    in_use = _words(words_in_use)
    return [token for token in tokens if token.lower() not in in_use]


def fewest_tokens(candidates: Sequence[str], num_subjects: int, used: Iterable[str]) -> int:
    """Return how many tokens per identifier suffice, at most three, where some are used already."""
    tokens = _distinct(candidates)
    forms = {normal_form(identifier) for identifier in used}
    enough = (k for k in (1, 2) if num_subjects <= _num_free(tokens, k, forms))
    return next(enough, 3)


def assign(
    candidates: Sequence[str],
    subject_ids: Iterable[str],
    given: Mapping[str, str],
    taken: Collection[str],
    seed: int,
    num_tokens: int,
) -> dict[str, str]:
    """Give every subject an identifier of `num_tokens` candidates, joined by spaces.

    Drawn uniformly without replacement. A subject's draw follows from (seed, subject id) alone;
    only where two subjects draw the same does the one whose id sorts first keep it, so the order
    of the manifest is without effect. A manifest that grows may still move such a subject: pass
    what is published already in `given`.

    Args:
        candidates: From `candidates`.
        subject_ids: All subjects, also those in `given`.
        given: Identifiers that stand, by subject id: chosen by the user, or published before.
        taken: Identifiers that are not to be used again.
        seed: Root of the draw.
        num_tokens: Tokens per identifier (the paper's k).

    Returns:
        The identifier of each of `subject_ids`, in their order.

    Raises:
        SpecError: when there are fewer identifiers than subjects.
    """
    tokens = _distinct(candidates)
    order = list(dict.fromkeys(subject_ids))
    used = {normal_form(identifier) for identifier in (*given.values(), *taken)}
    waiting = sorted(subject for subject in order if subject not in given)
    total, free = _count(len(tokens), num_tokens), _num_free(tokens, num_tokens, used)
    if len(waiting) > free:
        raise SpecError([_run_out(len(tokens), num_tokens, total, free, len(waiting))])
    assigned = dict(given)
    for subject in waiting:
        assigned[subject] = _draw(tokens, num_tokens, total, used, f"{seed}/{subject}")
        used.add(normal_form(assigned[subject]))
    return {subject: assigned[subject] for subject in order}


def check_identifiers(
    tokenizer: Vocabulary,
    chosen: Iterable[str],
    words_in_use: Iterable[str],
    rank_range: tuple[int, int] | None = None,
) -> dict[str, list[str]]:
    """Say what speaks against identifiers that users chose; nothing against a good one.

    The rules are those of `candidates`. They are warnings: training with it works, less well.

    Returns:
        The findings, by identifier.
    """
    in_use = _words(words_in_use)
    context = _Context(tokenizer)
    bounds = rank_range or default_rank_range(tokenizer)

    def findings(identifier: str) -> list[str]:
        words = identifier.split()
        return [one for word in words for one in _about_word(word, in_use, context, bounds)]

    return {identifier: findings(identifier) for identifier in chosen}


def normal_form(identifier: str) -> str:
    """What CLIP, and people, make of a spelling: lower case, single spaces."""
    return " ".join(identifier.lower().split())


class _Context:
    """A tokenizer, asked about words as they stand inside "a photo of X dog"."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._before = self._plain(_BEFORE)
        self._after = self._plain(_AFTER)

    def encode(self, word: str) -> list[int]:
        """Return the word's tokens inside a prompt."""
        ids = self._plain(f"{_BEFORE} {word} {_AFTER}")
        head, tail = len(self._before), len(ids) - len(self._after)
        if ids[:head] == self._before and ids[tail:] == self._after:
            return ids[head:tail]
        return self._plain(word)  # a tokenizer that joins tokens across words

    def is_one_token(self, word: str, index: int) -> bool:
        """Whether the word is exactly that token, alone and inside a prompt."""
        inside = [*self._before, index, *self._after]
        return (
            self._plain(word) == [index]
            and self._plain(f"{_BEFORE} {word} {_AFTER}") == inside
            and str(self._tokenizer.decode([index])).strip() == word
        )

    def piece(self, index: int) -> str:
        """Return the text of one token."""
        return str(self._tokenizer.decode([index])).strip()

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _about_word(
    word: str, in_use: set[str], context: _Context, bounds: tuple[int, int]
) -> Iterator[str]:
    ids = context.encode(word)
    if not word.isascii() or not word.isalnum():
        yield f"{word!r} has characters other than letters and digits"
    if word.lower() in in_use:
        yield f"{word!r} is a word of the class nouns or prompts in use"
    elif word.lower() in _meanings():
        yield f"{word!r} is {_meanings()[word.lower()]}"
    elif len(ids) == 1:
        yield from _about_token(word, ids[0], context, bounds)
    if len(ids) != 1:
        yield _about_pieces(word, ids, context)


def _about_token(word: str, index: int, context: _Context, bounds: tuple[int, int]) -> list[str]:
    """Judge a word that is one token and is in no list."""
    first, last = bounds
    piece = context.piece(index)
    if piece.lower() != word.lower():
        return [f"{word!r} is unknown to the base, which reads {piece!r} instead"]
    if len(word) > MAX_CHARACTERS:
        return [
            f"{word!r} is a whole word in the base's vocabulary, with a meaning of its own; "
            f"rare tokens have at most {MAX_CHARACTERS} characters"
        ]
    if len(word) == 1 or word.isdigit():
        return [f"{word!r} is a single letter or a number, for which the base's prior is strong"]
    if not first <= index < last:
        rank = "frequent" if index < first else "rare"
        return [f"{word!r} is token {index}, more {rank} than the range [{first}, {last})"]
    return []


def _about_pieces(word: str, ids: Sequence[int], context: _Context) -> str:
    """Describe a word that is not one token."""
    if not ids:
        return f"{word!r} vanishes in the base's tokenizer"
    pieces = [context.piece(index) for index in ids]
    single = sum(len(piece) <= 1 for piece in pieces)
    into = "single letters" if 2 * single > len(pieces) else "pieces"
    return (
        f"{word!r} falls apart into {into}, {len(ids)} tokens ({' '.join(pieces)}), "
        "each with a meaning of its own"
    )


def _is_plain(text: str) -> bool:
    return (
        2 <= len(text) <= MAX_CHARACTERS
        and text.isascii()
        and text.isalnum()
        and not text.isdigit()  # a number counts things
    )


def _words(texts: Iterable[str]) -> set[str]:
    """Split texts into lower-case words; placeholders such as {subject} do no harm."""
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


@cache
def _meanings() -> dict[str, str]:
    """Read the bundled list: what each word is, as the title of its first section says."""
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


def _count(num_candidates: int, num_tokens: int) -> int:
    """Count the ordered draws of `num_tokens` different candidates."""
    total = 1
    for drawn in range(num_tokens):
        total *= max(0, num_candidates - drawn)
    return total


def _distinct(candidates: Sequence[str]) -> list[str]:
    """Leave one of those that differ by case alone."""
    return list({token.lower(): token for token in candidates}.values())


def _num_free(tokens: Sequence[str], num_tokens: int, used: set[str]) -> int:
    """Count the identifiers that can be drawn and are not used."""
    known = {token.lower() for token in tokens}
    split = (identifier.split() for identifier in used)
    drawn = sum(
        len(words) == num_tokens == len(set(words)) and known.issuperset(words) for words in split
    )
    return _count(len(tokens), num_tokens) - drawn


def _draw(tokens: Sequence[str], num_tokens: int, total: int, used: set[str], root: str) -> str:
    """Draw until one is free; the caller has made sure that there is one."""
    attempt = 0
    while True:
        drawn = hashlib.sha256(f"{root}/{attempt}".encode()).digest()
        identifier = _nth(tokens, num_tokens, int.from_bytes(drawn) % total)
        if normal_form(identifier) not in used:
            return identifier
        attempt += 1


def _nth(tokens: Sequence[str], num_tokens: int, number: int) -> str:
    """Return the draw of that number: its digits in a falling base choose among those left."""
    chosen: list[int] = []
    for drawn in range(num_tokens):
        number, index = divmod(number, len(tokens) - drawn)
        for earlier in sorted(chosen):
            index += index >= earlier
        chosen.append(index)
    return " ".join(tokens[index] for index in chosen)


def _run_out(num_candidates: int, num_tokens: int, total: int, free: int, wanted: int) -> Problem:
    what = (
        f"{wanted} subjects need an identifier, but of {total} ({num_candidates} rare tokens, "
        f"{num_tokens} per identifier) only {free} are free"
    )
    more = f"set num_tokens: {num_tokens + 1}" if num_tokens < 3 else "give identifiers by hand"
    return Problem("error", "identifiers", what, f"widen rank_range, or {more}")
