"""Fidelity of the weights that a lane is training: renders by the resident model, embedded.

`FidelityMeter` measures; `Watch` follows one subject: its curve, its best weights, and when it
ends. The rule is in dbray.training.stopping. Nothing here draws from a global random state, so
measuring does not change training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.generate import OnStep, Sampling, generate_in_batches
from dbray.planning.plan import PlannedSubject
from dbray.planning.stop import StopMeasure
from dbray.scores import embedders, figures
from dbray.spec.prompts import fill_prompt
from dbray.spec.stop import Stop
from dbray.training.curve import LossPoint
from dbray.training.loop import Progress
from dbray.training.losses import seed_of
from dbray.training.stopping import FidelityPoint, best_of, is_over


@dataclass(frozen=True)
class Reference:
    """What a subject's renders are compared with: embeddings, (N, E) each."""

    photographs: Tensor
    of_base: Tensor
    """Of the base's renders of the class prompts."""

    @property
    def ceiling(self) -> float:
        """Identity of the photographs to each other."""
        return figures.ceiling(self.photographs)


class FidelityMeter:
    """Renders with a resident model, and embeds what it renders."""

    def __init__(self, stop: Stop, measure: StopMeasure, backbone: Backbone) -> None:
        self._stop, self._backbone = stop, backbone
        self._sampling = Sampling(measure.sampler, stop.sampling_steps, measure.guidance)
        embedder = embedders.find_on_this_node(measure.embedder)
        self._embedder = embedders.load(embedder, str(backbone.device))
        self._of_base: dict[str, Tensor] = {}

    def reference(
        self,
        planned: PlannedSubject,
        photographs: Sequence[np.ndarray],
        on_step: OnStep | None = None,
    ) -> Reference:
        """Embed a subject's photographs, and its class. The backbone holds base weights."""
        noun = planned.subject.class_noun
        if noun not in self._of_base:
            self._of_base[noun] = self._render(self._stop.class_prompts, noun, None, on_step)
        return Reference(self._embedder.images(photographs), self._of_base[noun])

    def measure(
        self, planned: PlannedSubject, reference: Reference, on_step: OnStep | None = None
    ) -> tuple[float, float]:
        """Measure identity and drift of the present weights.

        `on_step` is called after every sampling step.
        """
        stop, noun = self._stop, planned.subject.class_noun
        own = self._render(stop.prompts, noun, planned.identifier, on_step)
        of_class = self._render(stop.class_prompts, noun, None, on_step)
        identity = figures.identity(own, reference.photographs)
        return identity, figures.drift(of_class, reference.of_base)

    def _render(
        self,
        templates: Sequence[str],
        noun: str,
        identifier: str | None,
        on_step: OnStep | None,
    ) -> Tensor:
        """Render and embed `images` images of each prompt: (G, E)."""
        stop = self._stop
        prompts = [fill_prompt(template, noun, identifier) for template in templates]
        seeds = [seed_of(stop.seed, index) for index in range(stop.images)] * len(prompts)
        repeated = [prompt for prompt in prompts for _ in range(stop.images)]
        pixels = generate_in_batches(self._backbone, repeated, seeds, self._sampling, on_step)
        return self._embedder.images(list(pixels))


@dataclass
class Watch:
    """Follows one subject in training. Without `stop`, its last weights are its best.

    All ranks make the same calls.
    """

    stop: Stop | None
    num_steps: int
    """The most that training takes."""
    measure: Callable[[], tuple[float, float]]
    """Gives identity and drift of the present weights, the same on all ranks."""
    weights: Callable[[], dict[str, Tensor]]
    """Copies the present weights that would be published."""
    ceiling: float = 1.0
    """Identity of the photographs to each other."""
    _curve: tuple[FidelityPoint, ...] = ()
    _best: Mapping[str, Tensor] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def resume(self, progress: Progress) -> None:
        """Continue from a checkpoint, or begin; the time of training starts here."""
        self._curve, self._best = progress.fidelity, progress.best
        self._started = time.monotonic() - (self._curve[-1].seconds if self._curve else 0.0)

    def look(self, step: int) -> bool:
        """Measure if it is time to; return whether training ends after this step."""
        if self.stop is None or (step % self.stop.every and step != self.num_steps):
            return False
        identity, drift = self.measure()
        seconds = round(time.monotonic() - self._started, 4)
        self._curve = (*self._curve, FidelityPoint(step, identity, drift, seconds))
        if best_of(self._curve, self.stop) == len(self._curve) - 1:
            self._best = self.weights()
        return self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether training ends after what was measured."""
        if self.stop is None or not self._curve:
            return False
        return is_over(self._curve, self.stop, self.ceiling)

    def noted(self, progress: Progress) -> Progress:
        """Add what is known here to a progress, for a checkpoint."""
        return replace(progress, fidelity=self._curve, best=self._best)

    def result(self, losses: tuple[LossPoint, ...]) -> Progress:
        """Return the weights to publish, their step, and the curves."""
        if self.stop is None:
            return Progress(self.num_steps, losses, best=self.weights())
        step = self._curve[best_of(self._curve, self.stop)].step
        return Progress(step, losses, self._curve, self._best)
