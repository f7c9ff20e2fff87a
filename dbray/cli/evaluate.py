"""The command `evaluate`: scores of every image of every model, in a folder."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dbray.cli.watch import watch
from dbray.errors import SpecError
from dbray.spec.problems import problems_of
from dbray.spec.prompt_files import read_prompts
from dbray.spec.sections import Previews, Scoring

if TYPE_CHECKING:
    from dbray.run.evaluation import Evaluation

_SCORING = ("embedder", "embedder_revision", "clip", "clip_revision", "images", "seed")
_PREVIEWS = ("steps", "guidance", "sampler")


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate the models of a registry or of a job."""
    from dbray.cli.noise import quiet_stderr
    from dbray.run.evaluation import EvaluationOptions, run_evaluation

    suite = read_prompts(args.prompts)
    options = EvaluationOptions(
        suite,
        args.prompts,
        _chosen(args, _SCORING, Scoring),
        _chosen(args, _PREVIEWS, Previews),
        args.address or os.environ.get("RAY_ADDRESS"),
    )
    with quiet_stderr(), watch() as shown:
        result = run_evaluation(
            args.place, args.output, options, shown.note,
            lambda done, total: shown.progress("models", done, total),
        )  # fmt: skip
    _print_result(result)
    return 3 if result.failures else 0


def _chosen(
    args: argparse.Namespace, names: tuple[str, ...], section: type[Scoring | Previews]
) -> dict[str, Any]:
    """Return the given flags of a section. Raises SpecError with every mistake in them."""
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        section.model_validate(chosen)
    except ValidationError as exc:
        raise SpecError(problems_of(exc, "command line")) from exc
    return chosen


def _print_result(result: Evaluation) -> None:
    flagged = [one for one in result.found if one.flags]
    print(f"\n{len(result.found)} model(s) evaluated, {len(flagged)} with faults, "
          f"{len(result.failures)} not evaluated")  # fmt: skip
    for one in flagged[:20]:
        for flag in one.flags:
            print(f"  {one.name} {flag.text}")
    for name, reason in result.failures[:20]:
        print(f"  not evaluated: {name}: {reason}")
    print(f"Report: {result.report}")
