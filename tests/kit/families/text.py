"""Tiny text encoders, and tokenizers with the classes and special tokens of the real ones.

All three tokenizers have the same words and the same 200 rare tokens, so that an identifier is one
token in each of them. Other words are split into letters.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        CLIPTextConfig,
        CLIPTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen3ForCausalLM,
        T5EncoderModel,
        T5Tokenizer,
    )

CLIP_LENGTH = 32
"""Real ones have 77: code that assumes 77 fails on these."""

RARE_TOKENS = [first + second for first in "zxqvjkwbfg" for second in "bcdfghjklmnpqrstvwxz"]
WORDS = [
    "photo", "of", "dog", "cat", "the", "in", "on", "at", "with", "and", "wearing", "beach",
    "snow", "clock", "vase", "candle", "robot", "red", "blue", "hat",
]  # fmt: skip
_TEMPLATE_WORDS = [
    "system", "user", "assistant", "Describe", "image", "by", "detailing", "color", "shape",
    "size", "texture", "quantity", "text", "spatial", "relationships", "objects", "background",
]  # fmt: skip
"""With these, Qwen-Image's template has as many tokens before the prompt as the real one."""

_CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""Qwen3's, for messages of one user."""


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Make a CLIP tokenizer; the second one of SDXL and SD3 pads with '!'."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    words = [[*word[:-1], word[-1] + "</w>"] for word in [*RARE_TOKENS, *WORDS]]
    vocabulary, merges = _byte_pairs([*alphabet, *(byte + "</w>" for byte in alphabet)], words)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=CLIP_LENGTH
    )


def t5_tokenizer() -> T5Tokenizer:
    """Make a T5 tokenizer: cased pieces of one unigram model, and 100 sentinels."""
    from transformers import T5Tokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    specials = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    words = [("▁" + word, -5.0) for word in ["a", *WORDS, *RARE_TOKENS]]
    spelling = [(letter, -10.0) for letter in ["▁", *letters]]
    return T5Tokenizer(vocab=[*specials, *words, *spelling], model_max_length=512)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Make the tokenizer of Qwen2.5-VL and Qwen3, with Qwen3's chat template."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    bare = [*RARE_TOKENS, *WORDS, *_TEMPLATE_WORDS]
    spaced = [["Ġ", *word] for word in ["a", *bare]]
    vocabulary, merges = _byte_pairs(_byte_alphabet(), [*map(list, bare), *spaced, ["Ċ", "Ċ"]])
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=1024 + 34)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in _CHAT_SPECIALS])
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def clip_config(tokenizer: CLIPTokenizer, hidden_size: int = 16, **changes: Any) -> CLIPTextConfig:
    """Configure a CLIP text encoder.

    Its end of text is number 2, as in the files of SDXL, SD3 and Flux.1: then transformers pools
    at the largest token id, whichever token that is.
    """
    from transformers import CLIPTextConfig

    values = {
        "vocab_size": len(tokenizer), "hidden_size": hidden_size, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": hidden_size,
        "max_position_embeddings": CLIP_LENGTH, "bos_token_id": 0, "eos_token_id": 2,
        "pad_token_id": 1, "initializer_factor": 5.0,
    }  # fmt: skip
    return CLIPTextConfig(**(values | changes))


def t5_encoder(tokenizer: T5Tokenizer, width: int = 32) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=width, d_ff=24, d_kv=8, num_layers=2, num_heads=2,
            relative_attention_num_buckets=8, feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def qwen3(tokenizer: Qwen2Tokenizer, num_layers: int) -> Qwen3ForCausalLM:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
            num_hidden_layers=num_layers, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, max_position_embeddings=1024, initializer_range=0.2,
            tie_word_embeddings=True, **_token_ids(tokenizer),
        )
    )  # fmt: skip


def qwen2_5_vl(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 2048, "initializer_range": 0.2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
        **_token_ids(tokenizer),
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": 16, "fullatt_block_indexes": [0],
    }  # fmt: skip
    specials = {f"{kind}_token_id": number for number, kind in enumerate(
        ("vision_start", "vision_end", "vision", "image", "video"))}  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **specials)
    )


def _token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """Return the tokens that begin, end and pad a text, as in Qwen's files."""
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return {"bos_token_id": pad, "eos_token_id": end, "pad_token_id": pad}


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _byte_pairs(
    alphabet: list[str], words: list[list[str]]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Make a vocabulary and merges in which each word is one token."""
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        # New merges rank after all earlier ones, so they do not affect earlier words.
        left, *rest = _merge(word, ranks)
        for right in rest:
            ranks.setdefault((left, right), len(ranks))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    return vocabulary, list(ranks)


def _merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Join the pair of the lowest rank repeatedly, as byte pair encoding does."""
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        first, second = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for symbol in symbols:
            if joined and (joined[-1], symbol) == (first, second):
                joined[-1] += symbol
            else:
                joined.append(symbol)
        symbols = joined
    return symbols
