"""The command `prompts`: named suites of prompts."""

from __future__ import annotations

import argparse
import json

from dbray.cli.output import print_table
from dbray.errors import SpecError
from dbray.spec.prompts import fill_prompt
from dbray.spec.suites import SUITES


def prompts(args: argparse.Namespace) -> int:
    """List the suites, or print the prompts of one."""
    if args.suite is None:
        rows = {name: suite._asdict() for name, suite in SUITES.items()}
        if args.json:
            print(json.dumps(rows, indent=2))
        else:
            _print_suites()
        return 0
    found = _prompts(args.suite, args.class_noun)
    print(json.dumps(found, indent=2) if args.json else "\n".join(found))
    return 0


def _print_suites() -> None:
    print_table(
        (
            (name, str(len(suite.objects)), str(len(suite.live)), suite.about, suite.live[0])
            for name, suite in SUITES.items()
        ),
        ("suite", "objects", "live", "the subject", "such as"),
    )


def _prompts(name: str, class_noun: str | None) -> list[str]:
    """Return the prompts of a suite; for a class noun, its variant, filled as for the base."""
    plain, _, variant = name.rpartition("-")
    if variant not in ("live", "objects"):
        plain, variant = name, ""
    if plain not in SUITES:
        raise SpecError.of(name, "is not a suite", f"known are {', '.join(SUITES)}")
    suite = SUITES[plain]
    if class_noun and variant:
        fix = f"write {plain}, or leave out --class"
        raise SpecError.of(name, "is one variant, and --class chooses another", fix)
    if class_noun:
        return [fill_prompt(one, class_noun) for one in suite.prompts_for(class_noun)]
    chosen = {"live": suite.live, "objects": suite.objects}
    return list(chosen.get(variant) or dict.fromkeys((*suite.objects, *suite.live)))
