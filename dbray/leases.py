"""Which subject is whose: leases that expire, attempts, outcomes. Plain Python; knows no Ray.

The queue lives in one actor. Lanes lease subjects from it and the driver reads progress from it.
Losing it costs nothing that is published: the registry is the truth, and the queue is made anew
from what is missing there.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dbray.errors import LaneLost
from dbray.plan import PlannedSubject
from dbray.summary import Failure, Outcome, Status


@dataclass(frozen=True)
class Lease:
    """A subject in the hands of a lane."""

    planned: PlannedSubject
    attempt: int
    lane: str
    started: float
    beaten: float
    step: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Progress of the queue, for people and for the driver's loop."""

    num_subjects: int
    num_pending: int
    in_flight: dict[str, tuple[str, int]]
    """Subject id and step of every lane at work."""
    outcomes: tuple[Outcome, ...]
    """Outcomes after the number that the caller has seen."""

    @property
    def num_ended(self) -> int:
        """Subjects that nobody has to deal with any more."""
        return self.num_subjects - self.num_pending - len(self.in_flight)

    @property
    def is_done(self) -> bool:
        """Whether all have ended."""
        return self.num_ended == self.num_subjects


class LeaseQueue:
    """Hands out subjects, each until it is completed, fails for good, or its lease expires."""

    def __init__(
        self,
        subjects: Sequence[PlannedSubject],
        max_attempts: int,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Neighbours share a class noun, so that a lane's encoded class images serve in a row.
        ordered = sorted(subjects, key=lambda planned: planned.subject.class_noun)
        self._pending = deque((planned, 1) for planned in ordered)
        self._num_subjects = len(ordered)
        self._max_attempts = max_attempts
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._outcomes: list[Outcome] = []
        self._failed: dict[str, Lease] = {}
        self._num_ended: Counter[str] = Counter()

    def enter(self, lane: str) -> None:
        """A lane (re)starts: what it held before is lost work."""
        self._expire(lambda lease: lease.lane == lane, f"the workers of {lane} died")

    def lease(self, lane: str) -> tuple[tuple[PlannedSubject, int] | None, bool]:
        """The next subject with the number of this attempt, if one waits; and whether all ended."""
        now = self._clock()
        self._expire(
            lambda lease: now - lease.beaten > self._lease_seconds,
            f"its lane was silent for {self._lease_seconds:g} seconds",
        )
        if not self._pending:
            return None, not self._leases
        planned, attempt = self._pending.popleft()
        self._leases[planned.subject.id] = Lease(planned, attempt, lane, now, now)
        return (planned, attempt), False

    def beat(self, lane: str, subject_id: str, step: int) -> None:
        """The lane is alive, and has taken `step` steps on its subject."""
        lease = self._leases.get(subject_id)
        if lease is not None and lease.lane == lane:
            self._leases[subject_id] = replace(lease, beaten=self._clock(), step=step)

    def complete(self, subject_id: str, timings: dict[str, float], steps: int) -> None:
        """The subject is published, in so many steps since it was begun or continued.

        Twice is harmless: what counts is that it is published.

        A lane that was slow rather than dead may say so after its last attempt was given up; then
        this outcome comes after that of the failure, and stands.
        """
        lease = (
            self._leases.pop(subject_id, None)
            or self._take_pending(subject_id)
            or self._failed.pop(subject_id, None)
        )
        if lease is not None:
            self._end(lease, "published", timings=timings, steps=steps)

    def fail(self, lane: str, subject_id: str, failure: Failure) -> None:
        """The subject failed in this lane: it is tried again if that may help."""
        lease = self._leases.get(subject_id)
        if lease is None or lease.lane != lane:
            return
        del self._leases[subject_id]
        if failure.retryable and lease.attempt < self._max_attempts:
            self._pending.append((lease.planned, lease.attempt + 1))
        else:
            self._end(lease, "failed", error=failure)

    def abandon(self, message: str) -> None:
        """No lane is left: what was tried has failed; what never was goes on waiting."""
        self._expire(lambda _: True, message)
        failure, now = Failure.of(LaneLost(message)), self._clock()
        waiting, self._pending = self._pending, deque()
        for planned, attempt in waiting:
            if attempt > 1:
                self._end(Lease(planned, attempt - 1, "", now, now), "failed", error=failure)
            else:
                self._pending.append((planned, attempt))

    def num_ended(self, lane: str) -> int:
        """Subjects that ended in the hands of a lane."""
        return self._num_ended[lane]

    def snapshot(self, num_seen: int) -> Snapshot:
        """Progress, with the outcomes after the first `num_seen`."""
        return Snapshot(
            self._num_subjects,
            len(self._pending),
            {lease.lane: (subject_id, lease.step) for subject_id, lease in self._leases.items()},
            tuple(self._outcomes[num_seen:]),
        )

    def _expire(self, is_lost: Callable[[Lease], bool], message: str) -> None:
        for subject_id, lease in list(self._leases.items()):
            if is_lost(lease):
                self.fail(lease.lane, subject_id, Failure.of(LaneLost(message)))

    def _take_pending(self, subject_id: str) -> Lease | None:
        """A lane whose lease expired has published after all: nobody needs to do it again."""
        for entry in self._pending:
            planned, attempt = entry
            if planned.subject.id == subject_id:
                self._pending.remove(entry)
                now = self._clock()
                return Lease(planned, attempt - 1, "", now, now)
        return None

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
