"""How much of a prompt each family of bases reads."""

from __future__ import annotations

import pytest
import torch
from kit.families import FAMILIES

from dbray import bases
from dbray.bases.reading import Reader

LONG = " ".join(["photo of the dog on the beach"] * 200)


@pytest.fixture(scope="module", params=["tiny", *FAMILIES])
def base(request, tiny_base, tmp_path_factory):
    if request.param == "tiny":
        return bases.resolve(str(tiny_base))
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return bases.resolve(str(FAMILIES[request.param].build(folder)))


def tokens_of(base, prompt):
    tokenizers = {name: bases.load_tokenizer(base, name) for name in base.family.tokenizers}
    found = base.family.tokenize(tokenizers, [prompt])
    return torch.cat([found[name].flatten().long() for name in sorted(found)])


def test_only_tokens_reported_as_read_change_the_condition(base):
    num_read = Reader.of(base).cut([LONG])[LONG]
    assert 0 < num_read < len(LONG)
    read, unread = LONG[:num_read], LONG[num_read:]
    # Words in the place of the template's end, which must be read too.
    between, unread = unread[:80], unread[80:]
    # Qwen-Image's text encoder reads more than its transformer gets.
    if base.family.name != "Qwen-Image":
        assert torch.equal(tokens_of(base, LONG), tokens_of(base, read + between + unread.upper()))
    last = read.rindex(" ")
    other = f"{read[:last]} clock{between}{unread}"
    assert not torch.equal(tokens_of(base, LONG), tokens_of(base, other))
    assert Reader.of(base).cut([read.strip()]) == {}


def test_short_prompts_are_read_to_the_end(base):
    assert Reader.of(base).cut(["", "a photo of a dog", " a dog "]) == {}
