"""Which lane has which subject: leases that expire, attempts, outcomes. Does not use Ray.

The queue runs in one actor. Lanes lease subjects from it, and the driver reads progress from it.
Losing it loses nothing that is published: a new queue is made of what the registry lacks.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dbray.errors import LaneLost
from dbray.planning.plan import PlannedSubject
from dbray.records.results import Failure, Outcome, Status


@dataclass(frozen=True)
class Lease:
    """A subject that a lane has leased."""

    planned: PlannedSubject
    attempt: int
    lane: str
    started: float
    beaten: float
    step: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Progress of the queue."""

    num_subjects: int
    num_pending: int
    in_flight: dict[str, tuple[str, int]]
    """Lane and step of every subject that is leased, by its id."""
    outcomes: tuple[Outcome, ...]
    """Outcomes after the number that the caller has seen."""

    @property
    def num_ended(self) -> int:
        """Subjects that are published, or have failed for good."""
        return self.num_subjects - self.num_pending - len(self.in_flight)

    @property
    def is_done(self) -> bool:
        """Whether all have ended."""
        return self.num_ended == self.num_subjects


_Entry = tuple[PlannedSubject, int]
"""A waiting subject, and the number of its next attempt."""


class _Waiting:
    """Waiting subjects by class noun.

    A lane that stays with a noun reuses the class images that it has encoded. The nouns of most
    subjects come first. Only queues of nouns in work become shorter, so that stays true of the
    others, and the next noun is found without a look at all of them.
    """

    def __init__(self, subjects: Sequence[PlannedSubject]) -> None:
        self._of_noun: defaultdict[str, deque[_Entry]] = defaultdict(deque)
        self._num = 0
        num_of = Counter(planned.subject.class_noun for planned in subjects)
        for planned in sorted(subjects, key=lambda one: -num_of[one.subject.class_noun]):
            self.put(planned, 1)

    def __len__(self) -> int:
        return self._num

    def put(self, planned: PlannedSubject, attempt: int) -> None:
        """Add a subject, behind the others of its noun."""
        self._of_noun[planned.subject.class_noun].append((planned, attempt))
        self._num += 1

    def take(
        self,
        last: str | None,
        taken: Collection[str],
        fits: Callable[[_Entry], bool],
    ) -> _Entry | None:
        """Take one that fits; None if none does.

        One of the lane's last noun; else of the longest queue of a noun not in work.
        """
        for noun in self._in_order(last, taken):
            entry = next(filter(fits, self._of_noun[noun]), None)
            if entry is not None:
                return self._without(noun, entry)
        return None

    def _in_order(self, last: str | None, taken: Collection[str]) -> Iterator[str]:
        if last in self._of_noun:
            yield last
        yield from (noun for noun in self._of_noun if noun not in taken)
        in_work = [noun for noun in self._of_noun if noun in taken]
        yield from sorted(in_work, key=lambda noun: -len(self._of_noun[noun]))

    def take_out(self, subject_id: str) -> _Entry | None:
        """Take this subject; None if it is not waiting."""
        for noun, queue in self._of_noun.items():
            for entry in queue:
                if entry[0].subject.id == subject_id:
                    return self._without(noun, entry)
        return None

    def take_all(self) -> list[_Entry]:
        """Take all waiting subjects."""
        found = [entry for queue in self._of_noun.values() for entry in queue]
        self._of_noun.clear()
        self._num = 0
        return found

    def _without(self, noun: str, entry: _Entry) -> _Entry:
        self._of_noun[noun].remove(entry)
        self._num -= 1
        if not self._of_noun[noun]:
            del self._of_noun[noun]
        return entry


class LeaseQueue:
    """Leases subjects to lanes, each until it is published, fails, or its lease expires."""

    def __init__(
        self,
        subjects: Sequence[PlannedSubject],
        max_attempts: int,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        num_lanes: int = 1,
    ) -> None:
        self._waiting = _Waiting(subjects)
        self._num_subjects = len(subjects)
        self._max_attempts = max_attempts
        self._lease_seconds = lease_seconds
        self._num_lanes = num_lanes
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._outcomes: list[Outcome] = []
        self._failed: dict[str, Lease] = {}
        self._num_ended: Counter[str] = Counter()
        self._last_noun: dict[str, str] = {}
        self._controllers: dict[str, Any] = {}
        self._rooms: dict[str, Any] = {}

    def introduce(self, lane: str, controller: Any) -> None:
        """The lane has started, or started again, with this actor in control of its workers."""
        self._controllers[lane] = controller

    def controllers(self) -> list[Any]:
        """The actors in control of the lanes, those that have ended included."""
        return list(self._controllers.values())

    def occupy(self, lane: str, room: Any) -> None:
        """The lane's workers have started, in this placement group."""
        self._rooms[lane] = room

    def room(self, lane: str) -> Any:
        """The last placement group of a lane, if any; it may be free again."""
        return self._rooms.get(lane)

    def release(self, lane: str) -> None:
        """The lane's workers died, or have just started: its subjects go to other lanes."""
        self._expire(lambda lease: lease.lane == lane, f"the workers of {lane} died")

    def lease(self, lane: str) -> tuple[tuple[PlannedSubject, int] | None, bool]:
        """The next subject with the number of its attempt, if one is waiting; whether all ended."""
        now = self._clock()
        self._expire(
            lambda lease: now - lease.beaten > self._lease_seconds,
            f"its lane did not report for {self._lease_seconds:g} seconds",
        )
        if not self._waiting:
            return None, not self._leases
        company = [one for one in self._leases.values() if one.lane == lane]
        if self._has_enough(company):
            return None, False
        taken = {lease.planned.subject.class_noun for lease in self._leases.values()}
        leased = self._waiting.take(
            self._last_noun.get(lane),
            taken,
            lambda entry: not company or not self._is_last_chance(entry[1]),
        )
        if leased is None:
            return None, False
        planned, attempt = leased
        self._last_noun[lane] = planned.subject.class_noun
        self._leases[planned.subject.id] = Lease(planned, attempt, lane, now, now)
        return leased, False

    def _has_enough(self, company: Sequence[Lease]) -> bool:
        """Whether a lane gets no more company: towards the end, every lane gets an equal share."""
        if any(self._is_last_chance(lease.attempt) for lease in company):
            return True
        num_left = len(self._waiting) + len(self._leases)
        return bool(company) and len(company) >= -(-num_left // self._num_lanes)

    def _is_last_chance(self, attempt: int) -> bool:
        """Whether an attempt is made without company.

        A subject that ends its lane's processes fails alone then, and not with all its company.
        """
        return 1 < attempt == self._max_attempts

    def beat(self, lane: str, steps: Mapping[str, int]) -> None:
        """The lane is alive, and has done so many steps of these subjects, by id."""
        for subject_id, step in steps.items():
            lease = self._leases.get(subject_id)
            if lease is not None and lease.lane == lane:
                self._leases[subject_id] = replace(lease, beaten=self._clock(), step=step)

    def complete(self, subject_id: str, timings: dict[str, float], steps: int) -> None:
        """The subject is published; `steps` were done since it was started or continued.

        A second call does nothing. A lane that was slow, not dead, may call this after its last
        attempt was counted as failed: the later outcome replaces the failure.
        """
        lease = (
            self._leases.pop(subject_id, None)
            or self._take_waiting(subject_id, sum(timings.values()))
            or self._failed.pop(subject_id, None)
        )
        if lease is not None:
            self._end(lease, "published", timings=timings, steps=steps)

    def fail(self, lane: str, subject_id: str, failure: Failure) -> None:
        """The subject failed in this lane: it is tried again if the error may pass."""
        lease = self._leases.get(subject_id)
        if lease is None or lease.lane != lane:
            return
        del self._leases[subject_id]
        if failure.retryable and lease.attempt < self._max_attempts:
            self._waiting.put(lease.planned, lease.attempt + 1)
        else:
            self._end(lease, "failed", error=failure)

    def abandon(self, message: str) -> None:
        """No lane is left: subjects that were tried have failed; the others keep waiting."""
        self._expire(lambda _: True, message)
        failure, now = Failure.of(LaneLost(message)), self._clock()
        for planned, attempt in self._waiting.take_all():
            if attempt > 1:
                self._end(Lease(planned, attempt - 1, "", now, now), "failed", error=failure)
            else:
                self._waiting.put(planned, attempt)

    def retire(self) -> None:
        """A lane has ended, and leases no more: the others share the rest."""
        self._num_lanes = max(1, self._num_lanes - 1)

    def num_ended(self, lane: str) -> int:
        """Subjects that ended in this lane."""
        return self._num_ended[lane]

    def snapshot(self, num_seen: int) -> Snapshot:
        """Progress, with the outcomes after the first `num_seen`."""
        return Snapshot(
            self._num_subjects,
            len(self._waiting),
            {subject_id: (lease.lane, lease.step) for subject_id, lease in self._leases.items()},
            tuple(self._outcomes[num_seen:]),
        )

    def _expire(self, is_lost: Callable[[Lease], bool], message: str) -> None:
        for subject_id, lease in list(self._leases.items()):
            if is_lost(lease):
                self.fail(lease.lane, subject_id, Failure.of(LaneLost(message)))

    def _take_waiting(self, subject_id: str, seconds: float) -> Lease | None:
        """Take a subject that was published, in so many seconds, after its lease had expired."""
        found = self._waiting.take_out(subject_id)
        if found is None:
            return None
        planned, attempt = found
        now = self._clock()
        return Lease(planned, attempt - 1, "", now - seconds, now)

    def _end(
        self,
        lease: Lease,
        status: Status,
        *,
        timings: dict[str, float] | None = None,
        steps: int = 0,
        error: Failure | None = None,
    ) -> None:
        subject = lease.planned.subject
        self._num_ended[lease.lane] += 1
        if status == "failed":
            self._failed[subject.id] = lease
        self._outcomes.append(
            Outcome(
                id=subject.id,
                class_noun=subject.class_noun,
                status=status,
                revision=lease.planned.revision,
                identifier=lease.planned.identifier,
                attempts=lease.attempt,
                seconds=self._clock() - lease.started,
                timings=timings or {},
                steps=steps,
                error=error,
            )
        )
