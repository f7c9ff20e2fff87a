"""A tokenizer, and how it reads a word inside a prompt."""

from __future__ import annotations

from typing import Any, Protocol

# The words around an identifier in a prompt.
_BEFORE, _AFTER = "a photo of", "dog"


class Vocabulary(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, token_ids: Any) -> Any:
        """Return the text of token ids."""
        ...


def as_read(tokenizer: Any, reads_case: bool) -> Vocabulary:
    """Return the tokenizer of a base as the base uses it, which may be on lower case alone."""
    return tokenizer if reads_case else LowerCased(tokenizer)


class LowerCased:
    """The tokenizer of a base that reads every prompt in lower case; a Vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.get_vocab, self.decode = tokenizer.get_vocab, tokenizer.decode

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See Vocabulary."""
        return self._tokenizer.encode(text.lower(), add_special_tokens=add_special_tokens)


def is_byte_pair(tokenizer: Vocabulary) -> bool:
    """Whether token ids are ranks of merges, as in CLIP: the larger, the rarer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "model", None)).__name__ == "BPE"


class InPrompt:
    """A tokenizer's reading of words as they stand in "a photo of X dog"."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._before = self._plain(_BEFORE)
        self._after = self._plain(f"{_BEFORE} {_AFTER}")[len(self._before) :]

    def encode(self, word: str) -> list[int]:
        """Return the word's tokens inside a prompt."""
        ids = self._plain(f"{_BEFORE} {word} {_AFTER}")
        head, tail = len(self._before), len(ids) - len(self._after)
        if ids[:head] == self._before and ids[tail:] == self._after:
            return ids[head:tail]
        return self._plain(word)  # a tokenizer that joins tokens across words

    def is_one_token(self, index: int) -> bool:
        """Whether a token, and it alone, stands for its text inside a prompt.

        Where words have one token whether or not a space precedes them, as in CLIP, it has to stand
        for its text alone too.
        """
        text = str(self._tokenizer.decode([index]))
        alone = text.startswith(" ") or self._plain(text.strip()) == [index]
        return alone and self.encode(text.strip()) == [index]

    def piece(self, index: int) -> str:
        """Return the text of one token."""
        return str(self._tokenizer.decode([index])).strip()

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
