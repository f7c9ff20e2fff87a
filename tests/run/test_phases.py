"""When class images are made for a turn, and when lanes train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dbray.run import phases
from dbray.run.phases import end_of_turn


@pytest.mark.parametrize(("taken", "done", "total", "is_over"), [
    (29, 10, 1000, False),  # the turn lasts for 30 s
    (31, 10, 1000, True),
    (60, 70, 100, False),  # the others take 26 s more
    (60, 60, 100, True),  # 40 s more
    (31, 100, 100, False),  # there are no others
])  # fmt: skip
def test_a_turn_ends_in_time_unless_little_is_left(monkeypatch, taken, done, total, is_over):
    now = [100.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    decide = end_of_turn(30.0)
    now[0] += taken
    assert decide(done, total) == is_over
