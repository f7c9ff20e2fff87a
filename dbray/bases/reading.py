"""How much of a prompt a base reads: tokenizers silently cut off the end of long ones.

A base with several text encoders reads as much as the one with the longest texts. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbray.bases import Base, load_tokenizer
from dbray.bases.families.family import Family


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a base whose text encoder reads the longest texts."""

    family: Family
    tokenizer: Any

    @classmethod
    def of(cls, base: Base) -> Reader:
        """Load the tokenizer of a base. Raises BaseError."""
        return cls(base.family, load_tokenizer(base, base.family.reader))

    def cut_fields(self, texts: Mapping[str, str]) -> dict[str, int]:
        """Return the names of texts that are not read to their end, as `cut` does the texts."""
        cut = self.cut(texts.values())
        return {name: cut[text] for name, text in texts.items() if text in cut}

    def cut(self, prompts: Iterable[str]) -> dict[str, int]:
        """Return the prompts that are not read to their end, with the number of characters read."""
        # A token has at least one byte, so most prompts need no tokenizer.
        framed = {prompt: self.family.framed(self.tokenizer, prompt) for prompt in prompts}
        limit = self.family.max_tokens(self.tokenizer)
        long = [prompt for prompt, text in framed.items() if len(text.encode()) > limit - 2]
        if not long:
            return {}
        encoded = self.tokenizer(
            [framed[prompt] for prompt in long], return_offsets_mapping=True, verbose=False
        )
        spans = zip(long, encoded.offset_mapping, strict=True)
        return {
            prompt: _num_read(prompt, framed[prompt], offsets, limit)
            for prompt, offsets in spans
            if len(offsets) > limit
        }


def _num_read(prompt: str, framed: str, offsets: Sequence[tuple[int, int]], limit: int) -> int:
    """Count the characters of a prompt whose tokens fit together with the template's after it."""
    start = max(0, framed.find(prompt.strip()))
    end = start + len(prompt.strip())
    special = [span for span in offsets if span == (0, 0)]
    after = [span for span in offsets if span[0] >= end]
    kept = [span for span in offsets if span != (0, 0)][: limit - len(special) - len(after)]
    return max(0, max((last for _, last in kept), default=0) - start)
