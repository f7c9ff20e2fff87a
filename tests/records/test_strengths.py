"""Strengths of words: their scale, and what is kept of them."""

from __future__ import annotations

import pytest

from dbray.records.strengths import Strengths, read_strengths, write_strengths
from dbray.storage.store import Store

SCALE = Strengths(rare_effect=0.2, noun_effect=0.6)


def test_the_scale_is_from_rare_tokens_to_nouns():
    found = SCALE.measured({"rare": 0.2, "weak": 0.1, "half": 0.4, "noun": 0.6, "loud": 1.0})
    assert found.words == {"rare": 0.0, "weak": 0.0, "half": 0.5, "noun": 1.0, "loud": 2.0}
    assert found.strong == {"half", "noun", "loud"}
    assert found.of("rare half") == 0.5
    assert found.of("rare other") is None
    assert found.unknown(["x", "rare", "y", "x"]) == ["x", "y"]


def test_what_was_measured_first_stays_and_small_differences_are_rounded_away():
    found = SCALE.measured({"a": 0.3}).measured({"a": 0.5, "b": 0.3000004})
    assert found.words == {"a": 0.25, "b": 0.25}


def test_strong_words_are_in_lower_case_as_candidates_are_compared():
    scale = Strengths(rare_effect=1.0, noun_effect=2.0)
    assert scale.measured({"Paris": 3.0}).strong == {"paris"}


def test_a_base_that_does_not_know_nouns_has_no_strong_words():
    random = Strengths(rare_effect=0.2, noun_effect=0.21)
    assert random.measured({"a": 9.0}).strong == frozenset()


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"words": {}}'])
def test_strengths_are_kept_by_base_and_a_damaged_file_counts_as_none(tmp_path, damaged):
    store = Store(str(tmp_path))
    assert read_strengths(store, "abc") is None
    write_strengths(store, "abc", SCALE.measured({"a": 0.3}))
    assert read_strengths(store, "abc") == SCALE.measured({"a": 0.3})
    assert read_strengths(store, "other") is None
    store.write_bytes("identifiers/abc.json", damaged)
    assert read_strengths(store, "abc") is None
