"""The sizes that a base can draw, and the nearest of them to any other size."""

from __future__ import annotations

from dataclasses import dataclass

from dbray.serving.messages import Refusal, Refused


@dataclass(frozen=True)
class Sizes:
    """Sides from `least` to `most` in multiples of `step`, which the base's layers can halve."""

    least: int
    most: int
    step: int

    @classmethod
    def of(cls, resolution: int, latent_side: int) -> Sizes:
        """The sizes around a base's own resolution."""
        step = max(resolution // 8, resolution // latent_side)
        return cls(resolution // 2, 2 * resolution, step)

    def times(self, scale: int) -> Sizes:
        """The same sizes, enlarged."""
        return Sizes(self.least * scale, self.most * scale, self.step * scale)

    def fitted(self, wanted: tuple[int, int] | None, own: int, strict: bool) -> tuple[int, int]:
        """Return the size to draw, for one that is wanted; None is the square of side `own`.

        Raises:
            Refused: the base cannot draw it, and the caller wants no other.
        """
        if wanted in (None, (own, own)):
            return own, own
        nearest = self.nearest(wanted)
        if strict and nearest != wanted:
            raise Refused(Refusal(
                400, "invalid_value",
                f"Invalid 'size': this model draws {own}x{own}; other {self}.", "size",
            ))  # fmt: skip
        return nearest

    def nearest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The nearest size. One that is too large keeps its aspect ratio as far as possible."""
        scale = min(1.0, self.most / max(size))
        width, height = (self._side(side * scale) for side in size)
        return width, height

    def _side(self, side: float) -> int:
        return min(self.most, max(self.least, round(side / self.step) * self.step))

    def __str__(self) -> str:
        return f"sides are multiples of {self.step} from {self.least} to {self.most}"
