"""A job's second base, which samples with what is trained on the first.

Owns finding it, and why it cannot be used. Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dbray import bases
from dbray.bases import Base
from dbray.errors import BaseError, Problem
from dbray.spec.job import Job
from dbray.spec.methods import Full

_KEY = "serve_base"


def check_distilled(base: Base, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find why a complete base cannot be trained."""
    if reason := base.distilled:
        what = f"base {base.name!r}: {reason}; training would undo that"
        yield Problem("error", where("base"), what,
                      "name the base that it was distilled from, and this one as serve_base; or "
                      "rename its folder if it is not distilled")  # fmt: skip


def find_serve_base(
    job: Job, base: Base, where: Callable[[str], str]
) -> tuple[Base | None, list[Problem]]:
    """Find the base that a job's previews and serving use, and what is wrong with it."""
    if job.serve_base is None:
        return None, []
    try:
        found = bases.resolve(job.serve_base, job.serve_base_revision)
    except BaseError as exc:
        what = f"{_KEY}: {exc}".replace("base_revision", "serve_base_revision")
        return None, [Problem("error", where(_KEY), what, "change 'serve_base'")]
    problems = [Problem("error", where(_KEY), f"{_KEY}: {what}", fix)
                for what, fix in _unfit(job, base, found)]  # fmt: skip
    return found, problems


def _unfit(job: Job, base: Base, found: Base) -> Iterator[tuple[str, str]]:
    """Yield why what is trained on a base cannot be put on another, and what to change."""
    method = job.recipe.method
    if isinstance(method, Full) and method.publish is None:
        what = "full fine-tuning publishes whole parts, which would replace those of serve_base"
        yield what, "set method to lora, or its publish to delta; or remove serve_base"
    if found.family is not base.family:
        what = f"it is {found.family.name}, but the base is {base.family.name}"
        yield what, "name a base of the same family"
        return
    for part in (base.family.denoiser, *base.family.text_encoders):
        if base.layout.shapes(part) != found.layout.shapes(part):
            yield (
                f"its {part} has other layers than that of the base",
                "name a base of equal layers",
            )
