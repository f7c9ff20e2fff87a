"""Rare-token identifiers, on real CLIP and T5 tokenizers that are built here."""

import itertools
import json
import os
import string
import subprocess
import sys
from collections import Counter

import pytest
from kit.families.text import qwen_tokenizer
from transformers import CLIPTokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dbray.errors import SpecError
from dbray.planning import identifiers
from dbray.planning.identifiers.meanings import bundled, english

LETTERS = string.ascii_lowercase
SENTENCE = ["a photo of {subject} in the jungle"]


def clip_tokenizer(folder, merges):
    """Load a CLIP tokenizer from files in the layout of a diffusers folder."""
    alphabet = list(bytes_to_unicode().values())
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    tokens += [first + second for first, second in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def merges_of(*words):
    """Return the merges that build each word from its letters, left to right."""
    merges = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        whole = parts[0]
        for part in parts[1:]:
            merges[whole, part] = None
            whole += part
    return list(merges)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP vocabulary: some words, some rare tokens, and pieces of words."""
    words = ["photo", "dog", "of", "jungle", "special", "qzx", "vyj", "kfw", "xj", "sks", "the"]
    return clip_tokenizer(tmp_path_factory.mktemp("clip"), merges_of(*words))


@pytest.fixture(scope="module")
def large_clip(tmp_path_factory):
    """A vocabulary of over 20,000 tokens: all words of two or three letters, by frequency."""
    pairs = list(itertools.product(LETTERS, LETTERS))
    merges = [*pairs, *((a, b + "</w>") for a, b in pairs)]
    merges += [(a + b, c + "</w>") for a, b in pairs for c in LETTERS]
    merges += [("a" + b, c) for b in LETTERS for c in LETTERS]
    return clip_tokenizer(tmp_path_factory.mktemp("large"), merges)


@pytest.fixture(scope="module")
def t5():
    """A unigram tokenizer like T5's: case matters, and a word begins with a mark."""
    words = ["a", "photo", "of", "dog", "special", "Qzx", "qzx", "vyj", "für", "k7", "77", "gazebo"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0 - rank) for rank, word in enumerate(words)]
    pieces += [("wvu", -20.0)] + [(char, -30.0) for char in string.ascii_letters + string.digits]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def test_candidates_are_the_rare_whole_words(clip):
    assert identifiers.candidates(clip, None, SENTENCE) == ["qzx", "vyj", "kfw", "xj"]


def test_candidates_are_ranked_and_kept_within_the_range(clip):
    vocabulary = clip.get_vocab()
    bounds = (vocabulary["vyj</w>"], vocabulary["xj</w>"])
    assert identifiers.candidates(clip, bounds, SENTENCE) == ["vyj", "kfw"]


def test_words_in_use_are_not_candidates(clip):
    found = identifiers.candidates(clip, None, ["a Qzx dog", "kfw"])
    assert found == ["vyj", "xj"]


def test_large_vocabularies_of_byte_pairs_use_their_rare_end(large_clip):
    found = identifiers.candidates(large_clip, None, SENTENCE)
    assert len(found) > 2000
    vocabulary = large_clip.get_vocab()
    ranks = [vocabulary[word + "</w>"] for word in found]
    assert ranks == sorted(ranks)
    assert ranks[0] >= int(0.8 * len(vocabulary))
    assert "zoo" not in found  # bundled
    assert "zax" not in identifiers.candidates(large_clip, None, ["zax"])
    for word in found[::100]:
        inside = large_clip.encode(f"a photo of {word} dog", add_special_tokens=False)
        assert vocabulary[word + "</w>"] in inside
        assert len(inside) == len(large_clip.encode("a photo of dog", add_special_tokens=False)) + 1


def test_the_range_of_the_paper_is_that_of_unigrams():
    numbers = [(f"▁{number:05}", -3.0) for number in range(20_000)]
    t5 = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *numbers], extra_ids=0)
    assert identifiers.default_rank_range(t5) == (5_000, 10_000)
    read = identifiers.as_read(t5, reads_case=False)
    assert identifiers.default_rank_range(read) == (5_000, 10_000)


def test_words_of_a_dictionary_are_candidates_of_small_vocabularies_only(
    clip, large_clip, tmp_path
):
    awn = clip_tokenizer(tmp_path, merges_of("photo", "of", "dog", "awn"))
    assert identifiers.candidates(awn, None, []) == ["awn"]
    found = identifiers.candidates(large_clip, (0, 50_000), [])
    assert {"awn", "fob", "pms"}.isdisjoint(found)


def test_words_that_earlier_versions_drew_are_known(large_clip):
    by_rank = {rank: word.removesuffix("</w>") for word, rank in large_clip.get_vocab().items()}
    earlier = identifiers.candidates(large_clip, (5_000, 10_000), [])
    assert all(identifiers.was_candidate(large_clip, word) for word in earlier[::200])
    for word in ("sks", "dog", "zqx", "fghx", "BQZ", by_rank[4_999], by_rank[10_000]):
        assert not identifiers.was_candidate(large_clip, word), word


def test_a_vocabulary_whose_words_begin_with_a_space_has_candidates():
    found = identifiers.candidates(qwen_tokenizer(), None, SENTENCE)
    assert {"zb", "xk"} <= set(found)
    prompt = qwen_tokenizer().encode("a photo of zb dog")
    assert len(prompt) == len(qwen_tokenizer().encode("a photo of dog")) + 1


@pytest.mark.parametrize("word", ["dog", "cat", "the", "sks", "ak", "gun", "nba", "usa", "der"])
def test_words_with_a_meaning_are_not_candidates(large_clip, word):
    found = identifiers.candidates(large_clip, (0, 50_000), SENTENCE)
    assert large_clip.encode(word, add_special_tokens=False) == [
        large_clip.get_vocab()[word + "</w>"]
    ]
    assert word not in found
    assert "qzx" in found


def test_candidates_of_a_unigram_vocabulary_are_rare_words(t5):
    # 'qzx' looks like 'Qzx', 'für' is not ASCII, '77' is a number, 'wvu' does not begin a word.
    assert identifiers.candidates(t5, None, SENTENCE) == ["Qzx", "vyj", "k7"]


def test_a_base_that_reads_lower_case_has_lower_case_candidates_only(t5):
    read = identifiers.as_read(t5, reads_case=False)
    assert identifiers.candidates(read, None, SENTENCE) == ["qzx", "vyj", "k7"]
    assert check(read, "Qzx", []) == check(read, "qzx", []) == []
    assert identifiers.as_read(t5, reads_case=True) is t5


def test_a_range_without_tokens_is_rejected(clip):
    with pytest.raises(SpecError, match=r"\[60000, 70000\) holds no token"):
        identifiers.candidates(clip, (60_000, 70_000), [])
    with pytest.raises(SpecError, match="rank_range"):
        identifiers.candidates(clip, (9, 9), [])


def assign(tokens, subjects, given=None, taken=(), seed=0, num_tokens=1):
    return identifiers.assign(tokens, subjects, given or {}, taken, seed, num_tokens)


TOKENS = ["".join(pair) for pair in itertools.product("bcdfghj", LETTERS)]


def test_assignment_is_unique_and_deterministic():
    subjects = [f"s{index}" for index in range(len(TOKENS))]
    first = assign(TOKENS, subjects)
    assert sorted(first.values()) == sorted(TOKENS)
    assert list(first) == subjects
    assert assign(TOKENS, subjects) == first
    assert assign(TOKENS, subjects, seed=1) != first


def test_the_order_of_the_manifest_has_no_effect():
    subjects = [f"s{index}" for index in range(150)]
    assert assign(TOKENS, subjects[::-1]) == assign(TOKENS, subjects)


def test_a_draw_depends_only_on_the_subject():
    alone = assign(TOKENS, ["rex"])["rex"]
    among = assign(TOKENS, ["zoe", "bello", "rex"])
    assert len(set(among.values())) == 3
    assert among["rex"] == alone


def test_draws_are_uniform():
    counts = Counter(assign(TOKENS, [f"s{index}"])[f"s{index}"] for index in range(9100))
    expected = 9100 / len(TOKENS)
    chi_squared = sum((counts[token] - expected) ** 2 / expected for token in TOKENS)
    freedom = len(TOKENS) - 1
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_given_identifiers_are_kept_and_taken_ones_avoided():
    given, taken = {"rex": "b a", "bello": "ca"}, ["CB", "cc", "elsewhere"]
    names = assign(["ca", "cb", "cc", "cd"], ["fido", "rex", "bello"], given, taken)
    assert names == {"fido": "cd", "rex": "b a", "bello": "ca"}


def test_too_few_candidates_are_reported_with_their_number_and_a_fix():
    with pytest.raises(SpecError) as caught:
        assign(["ca", "cb", "cc"], ["a", "b", "c"], taken=["cb"])
    text = str(caught.value)
    assert "3 subjects need an identifier" in text
    assert "only 2 are free" in text
    assert "rank_range" in text
    assert "num_tokens: 2" in text


def test_two_tokens_reach_every_ordered_pair_once():
    subjects = [f"s{index}" for index in range(6)]
    names = assign(["ca", "cb", "cc"], subjects, num_tokens=2)
    pairs = {" ".join(pair) for pair in itertools.permutations(["ca", "cb", "cc"], 2)}
    assert set(names.values()) == pairs
    with pytest.raises(SpecError, match="num_tokens: 3"):
        assign(["ca", "cb", "cc"], [*subjects, "more"], num_tokens=2)


@pytest.mark.parametrize("num_tokens", [2, 3])
def test_many_subjects_get_unique_identifiers(num_tokens):
    tokens = ["".join(pair) for pair in itertools.product(LETTERS, LETTERS)][:400]
    subjects = [f"subject-{index}" for index in range(100_000)]
    names = assign(tokens, subjects, taken=["aa ab", "zz"], num_tokens=num_tokens)
    assert len(set(names.values())) == 100_000
    assert all(len(set(name.split())) == num_tokens for name in names.values())


def check(tokenizer, identifier, *more):
    return identifiers.check_identifiers(tokenizer, [identifier], *more)[identifier]


def test_good_identifiers_get_no_warning(clip):
    assert check(clip, "qzx", SENTENCE) == []
    assert check(clip, "qzx vyj", SENTENCE) == []


@pytest.mark.parametrize(
    ("identifier", "reasons"),
    [
        ("sks", ["'sks'", "weapon", "rifle"]),
        ("special", ["'special'", "common English word"]),
        ("xxy5syt00", ["is split into single letters", "9 tokens"]),
        ("jungle", ["prompts in use"]),
        ("photo", ["prompts in use"]),
        ("q-z", ["letters and digits", "is split"]),
        ("x", ["single letter"]),
        ("qzx ann", ["'ann' is a name"]),
    ],
)
def test_warnings_give_their_reasons(clip, identifier, reasons):
    text = " | ".join(check(clip, identifier, SENTENCE))
    for reason in reasons:
        assert reason in text
    assert text.count("'qzx'") == 0


def test_identifiers_outside_the_range_get_a_warning(large_clip):
    size = len(large_clip.get_vocab())
    assert check(large_clip, "bqz", []) == [
        f"'bqz' is token {large_clip.get_vocab()['bqz</w>']}, "
        f"more frequent than the range [{int(size * 0.8)}, {size})"
    ]
    assert check(large_clip, "zqx", []) == []
    assert "more rare than" in check(large_clip, "zqx", [], (5_000, 10_000))[0]


def test_every_candidate_passes_the_check(large_clip):
    for word in identifiers.candidates(large_clip, None, SENTENCE)[::50]:
        assert check(large_clip, word, SENTENCE) == []


def test_identifiers_of_a_unigram_vocabulary_are_checked(t5):
    assert check(t5, "vyj", SENTENCE) == []
    assert "whole word" in check(t5, "gazebo", [])[0]
    assert "is split" in check(t5, "wvu", [])[0]


def test_the_bundled_list_is_lower_case_and_every_section_has_words():
    meanings = bundled()
    assert all(word == word.lower() for word in meanings)
    assert {"sks", "ak", "the", "special", "nba"} <= meanings.keys()
    assert min(Counter(meanings.values()).values()) > 20


def test_the_dictionary_is_one_of_english():
    assert len(english()) > 80_000
    assert {"elephant", "fob", "pms"} <= english()
    assert {"sks", "xqz"}.isdisjoint(english())


def test_avoided_words_change_no_other_draw():
    subjects = [f"s{index}" for index in range(60)]
    before = assign(TOKENS, subjects)
    strong = [before["s7"], before["s8"].upper()]
    after = identifiers.assign(TOKENS, subjects, {}, (), 0, 1, strong)
    moved = {subject for subject in subjects if after[subject] != before[subject]}
    assert {"s7", "s8"} <= moved
    # Others move only where s7 or s8 takes what they had.
    taken = {after["s7"], after["s8"]}
    assert all(before[subject] in taken for subject in moved - {"s7", "s8"} if len(moved) < 4)
    assert {token.lower() for token in strong}.isdisjoint(after.values())


def test_avoided_words_count_as_missing():
    with pytest.raises(SpecError, match="only 2 are free"):
        identifiers.assign(["ca", "cb", "cc"], ["a", "b", "c"], {}, (), 0, 1, ["cb"])
    assert identifiers.fewest_tokens(["ca", "cb", "cc"], 3, ()) == 1
    assert identifiers.fewest_tokens(["ca", "cb", "cc"], 3, (), ["cb"]) == 3


def test_the_module_imports_no_heavy_library():
    code = (
        "import sys, dbray.planning.identifiers; "
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert out.stdout.strip() == "[]"
