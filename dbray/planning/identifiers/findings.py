"""What is doubtful about identifiers that users chose. These are warnings: training works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dbray.planning.identifiers.meanings import bundled
from dbray.planning.identifiers.rare import MAX_CHARACTERS, default_rank_range, words_of
from dbray.planning.identifiers.vocabulary import InPrompt, Vocabulary


def check_identifiers(
    tokenizer: Vocabulary,
    chosen: Iterable[str],
    words_in_use: Iterable[str],
    rank_range: tuple[int, int] | None = None,
) -> dict[str, list[str]]:
    """List what is doubtful about each identifier, by the rules of `candidates`.

    Returns:
        The findings, by identifier; none for a good one.
    """
    in_use = words_of(words_in_use)
    prompt = InPrompt(tokenizer)
    bounds = rank_range or default_rank_range(tokenizer)

    def findings(identifier: str) -> list[str]:
        words = identifier.split()
        return [one for word in words for one in _about_word(word, in_use, prompt, bounds)]

    return {identifier: findings(identifier) for identifier in chosen}


def _about_word(
    word: str, in_use: set[str], prompt: InPrompt, bounds: tuple[int, int]
) -> Iterator[str]:
    ids = prompt.encode(word)
    if not word.isascii() or not word.isalnum():
        yield f"{word!r} has characters other than letters and digits"
    if word.lower() in in_use:
        yield f"{word!r} is a word of the class nouns or prompts in use"
    elif word.lower() in bundled():
        yield f"{word!r} is {bundled()[word.lower()]}"
    elif len(ids) == 1:
        yield from _about_token(word, ids[0], prompt, bounds)
    if len(ids) != 1:
        yield _about_pieces(word, ids, prompt)


def _about_token(word: str, index: int, prompt: InPrompt, bounds: tuple[int, int]) -> list[str]:
    """Describe a word that is one token and in no list."""
    first, last = bounds
    piece = prompt.piece(index)
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


def _about_pieces(word: str, ids: Sequence[int], prompt: InPrompt) -> str:
    """Describe a word that is not one token."""
    if not ids:
        return f"{word!r} has no token at all in the base's vocabulary"
    pieces = [prompt.piece(index) for index in ids]
    single = sum(len(piece) <= 1 for piece in pieces)
    into = "single letters" if 2 * single > len(pieces) else "pieces"
    return (
        f"{word!r} is split into {into}, {len(ids)} tokens ({' '.join(pieces)}), "
        "each with a meaning of its own"
    )
