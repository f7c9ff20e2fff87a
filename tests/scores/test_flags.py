"""Planted faults are found, each by itself; a good model has none."""

from __future__ import annotations

import pytest
from kit.scores import GOOD, scores

from dbray.scores import flags
from dbray.scores.flags import flags_of
from dbray.spec.job import Job


def test_a_good_model_has_no_flags():
    assert flags_of(GOOD) == ()


@pytest.mark.parametrize(
    ("words", "planted"),
    [
        ("does not resemble its subject", {"identity": 0.40}),
        ("does not resemble its subject", {"identity": 0.10}),
        ("is taken for another subject", {"nearest": 0.5}),
        ("copies its photographs", {"copies": 0.8}),
        ("has forgotten its class", {"preservation": 0.55}),
        ("has forgotten its class", {"class_diversity": 0.2}),
        ("ignores prompts", {"followed": 0.3}),
    ],
)
def test_each_planted_fault_is_found_and_no_other(words, planted):
    [flag] = flags_of(scores(**planted))
    assert flag.words == words
    assert flag.evidence
    assert any(key in flag.fix for key in ("recipe.", "photographs"))


def test_all_faults_are_listed():
    kinds = [
        flag.kind
        for flag in flags_of(
            scores(identity=0.3, nearest=0.1, copies=1.0, preservation=0.8, followed=0.1)
        )
    ]
    assert kinds == ["unlike", "confused", "copies", "forgotten", "ignores"]


def test_thresholds_follow_the_base_and_the_ceiling():
    low = {"identity": 0.30, "base_identity": 0.10, "ceiling": 0.40}
    kept = {"preservation": 0.11, "base_preservation": 0.10}
    assert flags_of(scores(**low, **kept)) == ()
    assert flags_of(scores(followed=0.3, base_followed=0.4)) == ()


def test_a_look_unlike_others_of_the_class_is_no_fault():
    assert flags_of(scores(prompt=0.1)) == ()  # less agreement with every prompt


def test_look_alikes_that_photographs_cannot_tell_apart_are_no_fault():
    assert flags_of(scores(nearest=0.4, ceiling_nearest=0.5)) == ()
    assert flags_of(scores(nearest=0.0, num_lookalikes=0)) == ()


def test_what_was_not_measured_is_no_fault():
    assert flags_of(scores(followed=None, base_followed=None, class_diversity=None)) == ()
    # A base that already draws the subject as well as its photographs leaves no way to come.
    assert flags_of(scores(base_identity=0.8, ceiling=0.8, base_preservation=0.8)) == ()


def test_the_fixes_name_keys_of_a_job():
    planted = scores(identity=0.3, nearest=0.1, copies=1.0, preservation=0.8, followed=0.1)
    keys = {
        word.strip(",;(")
        for flag in flags_of(planted)
        for word in flag.fix.split()
        if word.startswith(("recipe.", "prior."))
    }
    assert keys
    for key in keys:
        section, name = key.split(".")
        assert name in Job.model_fields[section].annotation.model_fields


def test_the_thresholds_are_shares():
    found = [value for name, value in vars(flags).items() if name.startswith(("MIN_", "MAX_"))]
    assert len(found) == 6
    assert all(0 < value < 1 for value in found)
