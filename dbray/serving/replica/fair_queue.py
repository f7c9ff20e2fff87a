"""Requests that wait for the device: which is next, which share a batch, which are refused.

Owns fairness between tenants, preference of the resident weights, and the limits. Does not use
devices or Ray. Thread-safe: requests arrive on one thread, and the device takes them on another.

Tenants share the device by start-time fair queueing (Goyal, Vin and Cheng 1996): each has a tag,
the service that it has received. The lowest tag is served next; the virtual time is the tag of the
last one served. A new tenant starts at the virtual time, so absence earns nothing, and a short
absence erases nothing. Service is counted in sampling steps of images of the base's own size.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dbray.bases.generate import Sampling
from dbray.method.mixing import Member
from dbray.serving.messages import BASE, OVERLOADED, Ask, Refusal, Refused
from dbray.serving.options import ServeOptions
from dbray.serving.replica.cache import Hold

Clock = Callable[[], float]
Turn = tuple[float, float]

_KEPT = 0.8
"""Weight of past work after one more batch."""


@dataclass(eq=False)
class Request:
    """A request in a replica. `emit` may be called from any thread.

    `area` is that of one image, in units of the base's own size.
    """

    ask: Ask
    sampling: Sampling
    size: tuple[int, int]
    emit: Callable[[object], None]
    arrived: float
    area: float = 1.0
    read: Mapping[str, int] = field(default_factory=dict)
    """Characters read of each text that the base does not read to its end."""
    waiting: deque[int] = field(default_factory=deque)
    hold: Hold | None = None
    member: Member | None = None
    """Its model's part of a mixed batch; None if the model has to be alone in its batch."""
    ready_since: float | None = None
    begun: bool = False
    over: bool = False

    def may_join(self, lead: Request) -> bool:
        """Return whether this request can be in a batch with another one."""
        if (self.sampling, self.size) != (lead.sampling, lead.size):
            return False
        both_mix = self.member is not None and lead.member is not None
        return both_mix or self.ask.key == lead.ask.key

    @property
    def cost(self) -> float:
        """Cost of one image."""
        return self.sampling.steps * self.area

    @property
    def deadline(self) -> float:
        """When the caller stops waiting."""
        return self.arrived + self.ask.deadline_seconds

    def refuse(self, refusal: Refusal) -> None:
        """End the request; later calls do nothing."""
        if not self.over:
            self.over = True
            self.emit(refusal)


Batch = list[tuple[Request, int]]
"""Images to sample together: requests that share a pass, each with the index of an image."""


def company(lead: Request, ready: Sequence[Request], most: int) -> list[Request]:
    """Return the requests whose images may fill a batch of `most` images, the lead first.

    If those for the lead's model fill it, it is theirs: a pass of one model costs the least, and
    where weights can be merged exactly they are. Otherwise any that may join fill it, in the order
    of `ready`.
    """
    joined = [lead, *(one for one in ready if one is not lead and one.may_join(lead))]
    own = [one for one in joined if one.ask.key == lead.ask.key]
    is_filled = sum(len(one.waiting) for one in own) >= most
    return own if is_filled else joined


@dataclass(frozen=True)
class Pace:
    """What past work took; older batches count less.

    The rate is that of all the work together, not the mean of the batches' rates: a batch of few
    steps takes longer per step, and would make long requests look too long for their deadline.
    """

    cost: float = 0.0
    spent: float = 0.0

    def after(self, cost: float, seconds: float) -> Pace:
        """Return the pace with one more batch."""
        return Pace(cost + _KEPT * self.cost, seconds + _KEPT * self.spent)

    def seconds(self, cost: float) -> float:
        """Return how long work of a cost should take; 0 while nothing is known."""
        return cost * self.spent / self.cost if self.cost else 0.0


@dataclass(frozen=True)
class Limits:
    """How many images may wait, and how long.

    Attributes:
        max_images: sampled before the end of a new request; more is refused with 503.
        max_images_per_tenant: of one tenant; more is refused with 429.
        batch_images: in one batch, of the base's own size; of larger ones fewer.
        patience_seconds: longest time that a ready request waits for those whose weights are
            resident.
    """

    max_images: int = 64
    max_images_per_tenant: int = 32
    batch_images: int = 4
    patience_seconds: float = 2.0

    @classmethod
    def of(cls, options: ServeOptions) -> Limits:
        """The limits of a configuration."""
        return cls(
            options.max_queued_images,
            options.max_tenant_images,
            options.batch_images,
            options.patience_seconds,
        )


def is_mixed(batch: Batch, is_exact: bool) -> bool:
    """Return whether rows use factors beside the base's weights, rather than merged weights.

    Merged weights round otherwise. If the base computes in float32 (`is_exact`) that is invisible,
    and images of one model share merged weights. Otherwise a low-rank model is never merged: an
    image would depend on its company.
    """
    lead = batch[0][0]
    is_of_several = any(request.ask.key != lead.ask.key for request, _ in batch)
    return is_of_several or not (is_exact or lead.member is None or lead.ask.key == BASE)


class FairQueue:
    """Requests, ordered by their tenants' past use of the device."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._requests: list[Request] = []
        self._used: dict[str, float] = {}
        self._virtual = 0.0
        self._running: Batch = []
        self._pace = Pace()
        self._condition = threading.Condition()

    @property
    def num_images(self) -> int:
        """Waiting images."""
        with self._condition:
            return sum(len(request.waiting) for request in self._requests)

    def push(self, request: Request) -> None:
        """Accept a request; it is not sampled before `ready`. Raises Refused."""
        with self._condition:
            self._check(request)
            tenant = request.ask.tenant
            active = {other.ask.tenant for other in self._requests}
            # All other tags are at most the virtual time, at which a new tenant starts.
            self._used = {
                name: used
                for name, used in self._used.items()
                if used > self._virtual or name in active
            }
            self._used[tenant] = max(self._used.get(tenant, 0.0), self._virtual)
            request.waiting.extend(range(len(request.ask.seeds)))
            self._requests.append(request)

    def _check(self, request: Request) -> None:
        num_new, tenant = len(request.ask.seeds), request.ask.tenant
        images, cost = defaultdict[str, int](int), defaultdict[str, float](float)
        for other in self._requests:
            images[other.ask.tenant] += len(other.waiting)
            cost[other.ask.tenant] += len(other.waiting) * other.cost
        own = num_new * request.cost
        running = sum(other.cost for other, _ in self._running if not other.over)
        before = running + _until_done(cost, tenant, own) - own
        seconds = self._pace.seconds(before)
        late = seconds + self._pace.seconds(own) > request.ask.deadline_seconds
        if _until_done(images, tenant, num_new) > self.limits.max_images or (seconds > 0 and late):
            raise Refused(replace(OVERLOADED, retry_after=max(1, seconds)))
        if images[tenant] + num_new > self.limits.max_images_per_tenant:
            raise Refused(Refusal(
                429, "too_many_requests", "Too many of your images wait already; try again later.",
                retry_after=max(1, seconds),
            ))  # fmt: skip

    def ready(self, request: Request, hold: Hold | None, member: Member | None = None) -> None:
        """Note that a request's weights are loaded, or that it needs none.

        Requests with a `member` may be mixed.
        """
        with self._condition:
            request.hold, request.member = hold, member
            request.ready_since = self._clock()
            self._condition.notify()

    def withdraw(self, request: Request) -> None:
        """Remove a request that is done or abandoned; its place is free at once."""
        with self._condition:
            request.over = True
            request.waiting.clear()
            if request in self._requests:
                self._requests.remove(request)

    def refuse(self, chosen: Callable[[Request], bool], refusal: Refusal) -> None:
        """End the chosen requests."""
        with self._condition:
            for request in [request for request in self._requests if chosen(request)]:
                request.refuse(refusal)

    def wake(self) -> None:
        """Make `take` return, even with an empty batch."""
        with self._condition:
            self._condition.notify()

    def take(self, resident: str, timeout_seconds: float) -> Batch:
        """Wait for the next batch. `resident` is the key of the weights in the module."""
        with self._condition:
            batch = self._choose(resident)
            if not batch:
                self._condition.wait(timeout_seconds)
                batch = self._choose(resident)
            self._running = batch
            return batch

    def done(self, cost: float, seconds: float) -> None:
        """Note how long work of a cost took."""
        with self._condition:
            self._running = []
            if cost:
                self._pace = self._pace.after(cost, seconds)

    def _choose(self, resident: str) -> Batch:
        now = self._clock()
        for request in self._requests:
            if request.waiting and now > request.deadline:
                request.refuse(Refusal(503, "timed_out", "The server was too busy.", retry_after=1))
        ready = [
            j for j in self._requests if j.waiting and j.ready_since is not None and not j.over
        ]
        if not ready:
            return []
        longest = max(now - (request.ready_since or now) for request in ready)
        in_place = [request for request in ready if request.ask.key == resident]
        patient = longest < self.limits.patience_seconds
        lead = min(in_place if in_place and patient else ready, key=self.turn)
        self._virtual = max(self._virtual, self._used[lead.ask.tenant])
        most = max(1, int(self.limits.batch_images / max(1.0, lead.area)))
        batch: Batch = []
        for request in company(lead, sorted(ready, key=self.turn), most):
            while request.waiting and len(batch) < most:
                batch.append((request, request.waiting.popleft()))
                self._used[request.ask.tenant] += request.cost
        return batch

    def turn(self, request: Request) -> Turn:
        """The place of a request among those that wait: the lowest is next."""
        return self._used.get(request.ask.tenant, 0.0), request.arrived


def _until_done(waiting: Mapping[str, float], tenant: str, new: float) -> float:
    """How much is served until a tenant's new request is done, given how much of each tenant waits.

    That is all of its own, and at most as much of every other tenant, because they take turns.
    """
    mine = waiting.get(tenant, 0) + new
    return mine + sum(min(theirs, mine) for other, theirs in waiting.items() if other != tenant)
