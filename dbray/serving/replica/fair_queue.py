"""What waits for the device: who comes next, who shares a batch, and who is refused at once.

Owns fairness between tenants, affinity to the weights that are in the module, and the limits.
Knows neither devices nor Ray. Thread-safe: requests arrive on one thread, the device takes on
another.

Tenants share the device by start-time fair queueing (Goyal, Vin and Cheng 1996): each has a tag,
the service it has had; the lowest goes first, and the virtual time is the tag of whom was served
last. Who comes anew starts from the virtual time: an absence earns nothing, and a short one forgets
nothing. Service is counted in work: sampling steps of images of the base's own size.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dbray.method.generate import Sampling
from dbray.serving.messages import OVERLOADED, Ask, Refusal, Refused
from dbray.serving.replica.cache import Lease

Clock = Callable[[], float]
Turn = tuple[float, float]

_SMOOTHING = 0.2


@dataclass(eq=False)
class Job:
    """A request on its way. `emit` may be called from any thread.

    `area` is that of one image; the base's own size has 1.
    """

    ask: Ask
    sampling: Sampling
    size: tuple[int, int]
    emit: Callable[[object], None]
    arrived: float
    area: float = 1.0
    waiting: deque[int] = field(default_factory=deque)
    lease: Lease | None = None
    ready_since: float | None = None
    begun: bool = False
    over: bool = False

    @property
    def kind(self) -> tuple[str, Sampling, tuple[int, int]]:
        """Jobs of the same kind can share a batch."""
        return self.ask.key, self.sampling, self.size

    @property
    def work(self) -> float:
        """What one image costs."""
        return self.sampling.steps * self.area

    @property
    def deadline(self) -> float:
        """When nobody waits for it any more."""
        return self.arrived + self.ask.deadline_seconds

    def refuse(self, refusal: Refusal) -> None:
        """End it; only the first end counts."""
        if not self.over:
            self.over = True
            self.emit(refusal)


Batch = list[tuple[Job, int]]
"""Images to sample together: jobs of one kind, and the index of the image within each."""


@dataclass(frozen=True)
class Limits:
    """How much may wait.

    Attributes:
        max_images: that would be sampled until a new job is done; more is refused with 503.
        max_images_per_tenant: of one tenant; more is refused with 429.
        batch_images: in one batch, of the base's own size; of larger ones fewer.
        patience_seconds: how long a ready job waits at most for jobs whose weights are in place.
    """

    max_images: int = 64
    max_images_per_tenant: int = 32
    batch_images: int = 4
    patience_seconds: float = 2.0


class FairQueue:
    """Jobs, in the order of their tenants' use of the device so far."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._jobs: list[Job] = []
        self._used: dict[str, float] = {}
        self._virtual = 0.0
        self._running_work = 0.0
        self._seconds_per_work = 0.0
        self._condition = threading.Condition()

    @property
    def num_images(self) -> int:
        """Images that wait."""
        with self._condition:
            return sum(len(job.waiting) for job in self._jobs)

    def push(self, job: Job) -> None:
        """Take a job in; it is not sampled before `ready`. Raises Refused."""
        with self._condition:
            self._check(job)
            tenant = job.ask.tenant
            active = {other.ask.tenant for other in self._jobs}
            # The others' tags are at or behind the virtual time: they would start from there.
            self._used = {
                name: used
                for name, used in self._used.items()
                if used > self._virtual or name in active
            }
            self._used[tenant] = max(self._used.get(tenant, 0.0), self._virtual)
            job.waiting.extend(range(len(job.ask.seeds)))
            self._jobs.append(job)

    def _check(self, job: Job) -> None:
        num_new, tenant = len(job.ask.seeds), job.ask.tenant
        images, work = defaultdict[str, int](int), defaultdict[str, float](float)
        for other in self._jobs:
            images[other.ask.tenant] += len(other.waiting)
            work[other.ask.tenant] += len(other.waiting) * other.work
        own = num_new * job.work
        before = self._running_work + _until_done(work, tenant, own) - own
        seconds = before * self._seconds_per_work
        late = seconds + own * self._seconds_per_work > job.ask.deadline_seconds
        if _until_done(images, tenant, num_new) > self.limits.max_images or (seconds > 0 and late):
            raise Refused(replace(OVERLOADED, retry_after=max(1, seconds)))
        if images[tenant] + num_new > self.limits.max_images_per_tenant:
            raise Refused(Refusal(
                429, "too_many_requests", "Too many of your images wait already; try again later.",
                retry_after=max(1, seconds),
            ))  # fmt: skip

    def ready(self, job: Job, lease: Lease | None) -> None:
        """Say that a job's weights are loaded, or that it needs none."""
        with self._condition:
            job.lease, job.ready_since = lease, self._clock()
            self._condition.notify()

    def withdraw(self, job: Job) -> None:
        """Forget a job: done, or nobody waits for it any more. Its place is free at once."""
        with self._condition:
            job.over = True
            job.waiting.clear()
            if job in self._jobs:
                self._jobs.remove(job)

    def refuse(self, chosen: Callable[[Job], bool], refusal: Refusal) -> None:
        """End the jobs that are chosen."""
        with self._condition:
            for job in [job for job in self._jobs if chosen(job)]:
                job.refuse(refusal)

    def wake(self) -> None:
        """Make `take` return, maybe with nothing."""
        with self._condition:
            self._condition.notify()

    def take(self, resident: str, timeout_seconds: float) -> Batch:
        """Wait for the next batch. `resident` is the key whose weights are in place."""
        with self._condition:
            batch = self._choose(resident)
            if not batch:
                self._condition.wait(timeout_seconds)
                batch = self._choose(resident)
            self._running_work = sum(job.work for job, _ in batch)
            return batch

    def done(self, work: float, seconds: float) -> None:
        """Learn how long some work took."""
        with self._condition:
            self._running_work = 0.0
            if work:
                rate = seconds / work
                known = self._seconds_per_work or rate
                self._seconds_per_work = known + _SMOOTHING * (rate - known)

    def _choose(self, resident: str) -> Batch:
        now = self._clock()
        for job in self._jobs:
            if job.waiting and now > job.deadline:
                job.refuse(Refusal(503, "timed_out", "The server was too busy.", retry_after=1))
        ready = [j for j in self._jobs if j.waiting and j.ready_since is not None and not j.over]
        if not ready:
            return []
        longest = max(now - (job.ready_since or now) for job in ready)
        in_place = [job for job in ready if job.ask.key == resident]
        patient = longest < self.limits.patience_seconds
        lead = min(in_place if in_place and patient else ready, key=self.turn)
        self._virtual = max(self._virtual, self._used[lead.ask.tenant])
        most = max(1, int(self.limits.batch_images / max(1.0, lead.area)))
        batch: Batch = []
        for job in sorted((j for j in ready if j.kind == lead.kind), key=self.turn):
            while job.waiting and len(batch) < most:
                batch.append((job, job.waiting.popleft()))
                self._used[job.ask.tenant] += job.work
        return batch

    def turn(self, job: Job) -> Turn:
        """Where a job stands among those that wait: the lowest is next."""
        return self._used.get(job.ask.tenant, 0.0), job.arrived


def _until_done(waiting: Mapping[str, float], tenant: str, new: float) -> float:
    """How much is served until a tenant's new job is done, by what waits of each tenant.

    All of the tenant's own comes first; of every other tenant, who takes turns with it, no more
    than as much again.
    """
    mine = waiting.get(tenant, 0) + new
    return mine + sum(min(theirs, mine) for other, theirs in waiting.items() if other != tenant)
