"""Leases: one lane at a time has a subject, and each subject ends exactly once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dbray.errors import Diverged, LaneLost, StoreError
from dbray.lanes.leases import LeaseQueue
from dbray.records.results import Failure, Outcome

RETRYABLE = Failure.of(StoreError("storage is away"))
FINAL = Failure.of(Diverged("the loss is nan"))


def planned(name, noun="dog"):
    subject = SimpleNamespace(id=name, class_noun=noun)
    return SimpleNamespace(subject=subject, revision=f"rev-{name}", identifier=f"id-{name}")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make_queue(clock, *names, max_attempts=3):
    return LeaseQueue([planned(name) for name in names], max_attempts, 10.0, clock)


def make_packed_queue(clock, names, num_lanes=1, max_attempts=3):
    return LeaseQueue([planned(name) for name in names], max_attempts, 10.0, clock, num_lanes)


def take(queue, lane="lane-0"):
    leased, _ = queue.lease(lane)
    return leased and (leased[0].subject.id, leased[1])


def statuses(queue):
    return {outcome.id: outcome.status for outcome in queue.snapshot(0).outcomes}


def test_each_subject_is_leased_once(clock):
    queue = make_queue(clock, "a", "b")
    assert take(queue, "lane-0") == ("a", 1)
    assert take(queue, "lane-1") == ("b", 1)
    assert queue.lease("lane-0") == (None, False)
    queue.complete("a", {"train": 1.0}, 8)
    queue.complete("b", {}, 2)
    assert queue.lease("lane-0") == (None, True)
    assert statuses(queue) == {"a": "published", "b": "published"}
    assert [outcome.steps for outcome in queue.snapshot(0).outcomes] == [8, 2]
    assert queue.snapshot(0).is_done


def test_subjects_of_one_class_noun_are_neighbours(clock):
    subjects = [planned("a", "dog"), planned("b", "cat"), planned("c", "dog"), planned("d", "cat")]
    queue = LeaseQueue(subjects, 1, 10.0, clock)
    order = [take(queue)[0] for _ in subjects]
    assert order == ["a", "c", "b", "d"]


def test_a_lane_keeps_its_class_noun_and_prefers_one_of_its_own(clock):
    nouns = ["dog", "dog", "dog", "cat", "cat", "toy"]
    subjects = [planned(f"{noun}-{number}", noun) for number, noun in enumerate(nouns)]
    queue = LeaseQueue(subjects, 2, 10.0, clock)
    assert [take(queue, lane)[0] for lane in ("one", "two")] == ["dog-0", "cat-3"]
    queue.complete("cat-3", {}, 1)
    assert take(queue, "two")[0] == "cat-4"
    queue.complete("cat-4", {}, 1)
    assert take(queue, "two")[0] == "toy-5"  # rather than help with the dogs
    queue.fail("two", "toy-5", RETRYABLE)
    assert take(queue, "two") == ("toy-5", 2)
    assert [take(queue, lane)[0] for lane in ("three", "one")] == ["dog-1", "dog-2"]


def test_a_silent_lane_loses_its_subject(clock):
    queue = make_queue(clock, "a")
    take(queue, "lane-0")
    clock.now = 9.0
    queue.beat("lane-0", {"a": 5})
    clock.now = 18.0
    assert take(queue, "lane-1") is None
    clock.now = 20.0
    assert take(queue, "lane-1") == ("a", 2)


def test_a_restarted_lane_returns_its_lease(clock):
    queue = make_queue(clock, "a", "b")
    take(queue, "lane-0")
    take(queue, "lane-1")
    queue.release("lane-0")
    assert take(queue, "lane-0") == ("a", 2)
    assert queue.snapshot(0).in_flight["b"] == ("lane-1", 0)


def test_a_stale_lease_can_complete_but_not_fail(clock):
    queue = make_queue(clock, "a")
    take(queue, "lane-0")
    clock.now = 11.0
    take(queue, "lane-1")
    queue.fail("lane-0", "a", FINAL)
    assert statuses(queue) == {}
    queue.complete("a", {}, 8)  # lane-0 published, before lane-1 does
    queue.complete("a", {}, 8)
    assert [outcome.id for outcome in queue.snapshot(0).outcomes] == ["a"]


def test_a_subject_published_after_expiry_is_not_leased_again(clock):
    queue = make_queue(clock, "a", "b")
    take(queue, "lane-0")
    queue.release("lane-0")
    queue.complete("a", {"encode": 0.5, "train": 2.0}, 8)
    [outcome] = queue.snapshot(0).outcomes
    assert (outcome.status, outcome.seconds) == ("published", 2.5)
    assert take(queue, "lane-0") == ("b", 1)
    queue.complete("b", {}, 8)
    assert queue.lease("lane-0") == (None, True)


def test_retryable_errors_are_retried_up_to_max_attempts(clock):
    queue = make_queue(clock, "a", max_attempts=3)
    attempts = []
    while (taken := take(queue)) is not None:
        attempts.append(taken[1])
        queue.fail("lane-0", "a", RETRYABLE)
    assert attempts == [1, 2, 3]
    [outcome] = queue.snapshot(0).outcomes
    assert (outcome.status, outcome.attempts, outcome.error) == ("failed", 3, RETRYABLE)


def test_final_errors_are_not_retried(clock):
    queue = make_queue(clock, "a", "b")
    take(queue)
    queue.fail("lane-0", "a", FINAL)
    assert take(queue) == ("b", 1)
    assert statuses(queue) == {"a": "failed"}


def test_without_lanes_tried_subjects_fail_and_others_stay_pending(clock):
    queue = make_queue(clock, "a", "b", "c")
    take(queue, "lane-0")
    take(queue, "lane-1")
    queue.fail("lane-1", "b", RETRYABLE)
    queue.abandon("no lane is left")
    outcomes = queue.snapshot(0).outcomes
    assert {outcome.id: outcome.error.kind for outcome in outcomes} == {
        "a": LaneLost.__name__,
        "b": LaneLost.__name__,
    }
    assert queue.snapshot(0).num_pending == 1
    assert not queue.snapshot(0).is_done
    assert take(queue) == ("c", 1)


def test_a_subject_published_after_abandon_is_published(clock):
    queue = make_queue(clock, "a", max_attempts=1)
    take(queue, "lane-0")
    clock.now = 11.0
    assert queue.lease("lane-1") == (None, True)
    queue.complete("a", {"train": 1.0}, 8)  # lane-0 was slow, not dead
    queue.complete("a", {"train": 1.0}, 8)
    assert [outcome.status for outcome in queue.snapshot(0).outcomes] == ["failed", "published"]
    assert queue.snapshot(0).num_ended == 1


def test_the_queue_counts_ended_subjects_per_lane(clock):
    queue = make_queue(clock, "a", "b", "c")
    for lane, end in (("lane-0", "published"), ("lane-1", "failed"), ("lane-0", "published")):
        name, _ = take(queue, lane)
        if end == "failed":
            queue.fail(lane, name, FINAL)
        else:
            queue.complete(name, {}, 8)
    assert [queue.num_ended(f"lane-{index}") for index in range(3)] == [2, 1, 0]


def test_a_snapshot_contains_only_new_outcomes(clock):
    queue = make_queue(clock, "a", "b")
    for name in ("a", "b"):
        take(queue)
        queue.complete(name, {}, 8)
    assert [outcome.id for outcome in queue.snapshot(1).outcomes] == ["b"]


def test_outcomes_survive_json(clock):
    queue = make_queue(clock, "a", "b")
    take(queue)
    queue.fail("lane-0", "a", FINAL)
    take(queue)
    queue.complete("b", {"train": 1.5}, 8)
    for outcome in queue.snapshot(0).outcomes:
        assert Outcome.model_validate(outcome.row()) == outcome


def take_all(queue, lane):
    """Lease for a lane with many slots until it gets no more."""
    return list(iter(lambda: take(queue, lane), None))


def test_a_lane_leases_several_subjects_and_loses_all_of_them(clock):
    queue = make_packed_queue(clock, "abc")
    assert take_all(queue, "lane-0") == [("a", 1), ("b", 1), ("c", 1)]
    assert queue.snapshot(0).num_ended == 0
    queue.complete("b", {}, 8)
    clock.now = 9.0
    queue.beat("lane-0", {"a": 5})
    clock.now = 18.0
    assert take_all(queue, "lane-1") == [("c", 2)]
    queue.release("lane-0")
    assert take_all(queue, "lane-0") == [("a", 2)]


def test_lanes_share_the_last_subjects_equally(clock):
    queue = make_packed_queue(clock, "abcdef", num_lanes=2)
    assert len(take_all(queue, "lane-0")) == 3
    assert len(take_all(queue, "lane-1")) == 3


def test_a_lane_that_has_ended_leaves_its_share_to_the_others(clock):
    queue = make_packed_queue(clock, "abcdef", num_lanes=2)
    queue.retire()
    assert len(take_all(queue, "lane-0")) == 6


def test_a_last_attempt_is_made_without_company(clock):
    """A subject that ends its lane's process fails alone, and not with its company."""
    queue, killers = make_packed_queue(clock, "abcd", max_attempts=3), []
    while leased := take_all(queue, "lane-0"):
        names = [name for name, _ in leased]
        if "c" in names:  # it kills the lane
            killers.append(names)
            queue.release("lane-0")
            continue
        for name in names:
            queue.complete(name, {}, 8)
    assert killers == [["a", "b", "c", "d"], ["a", "b", "c", "d"], ["c"]]
    assert statuses(queue) == {"a": "published", "b": "published", "c": "failed", "d": "published"}
