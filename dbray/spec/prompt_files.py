"""Files of prompts: plain lists, and the file of google/dreambooth.

Owns both formats. A plain file has a template per line, with {subject}; the benchmark's
`prompts_and_classes.txt` has two lists in Python's notation, of objects and of live subjects.
"""

from __future__ import annotations

import re
from pathlib import Path

from dbray.errors import SpecError
from dbray.spec.prompts import check_subject_prompt
from dbray.spec.suites import SUITES, Suite

_BENCHMARK_LINE = re.compile(r"^\s*'(?P<prompt>.*)'\.format\(unique_token, class_token\),?\s*$")
_HEADINGS = {"object prompts": "objects", "live subject prompts": "live"}


def read_prompts(name: str) -> Suite:
    """Return a suite by its name, or the prompts of a file.

    Raises:
        SpecError: it is neither, or the file has an unusable prompt.
    """
    if name in SUITES:
        return SUITES[name]
    path = Path(name)
    if not path.is_file():
        fix = f"give a file with a prompt per line, or one of {', '.join(SUITES)}"
        raise SpecError.of(name, "is neither a file nor a suite of prompts", fix)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        fix = "give a text file with a prompt per line"
        raise SpecError.of(name, f"cannot be read: {exc}", fix) from exc
    found = _benchmark(lines) or _plain(name, lines)
    if not found.objects or not found.live:
        raise SpecError.of(name, "has no prompts", "write a prompt per line, with {subject}")
    return found


def _benchmark(lines: list[str]) -> Suite | None:
    """Read the benchmark's file; None if it is another one."""
    found: dict[str, list[str]] = {"objects": [], "live": []}
    kind = ""
    for line in lines:
        kind = _HEADINGS.get(line.strip().lower(), kind)
        match = _BENCHMARK_LINE.match(line)
        if match and kind:
            found[kind].append(match["prompt"].replace("{0} {1}", "{subject}"))
    if not found["objects"]:
        return None
    return Suite("google/dreambooth", tuple(found["objects"]), tuple(found["live"]))


def _plain(name: str, lines: list[str]) -> Suite:
    """Read a prompt per line; empty lines and comments (#) are skipped."""
    prompts = []
    for number, line in enumerate(lines, start=1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        try:
            prompts.append(check_subject_prompt(prompt))
        except ValueError as exc:
            fix = "write {subject} where the subject should be, and no other braces but {class}"
            raise SpecError.of(f"{name}:{number}", str(exc), fix) from exc
    return Suite(name, tuple(prompts), tuple(prompts))
