"""Which subject gets which identifier: drawn by (seed, subject id), each used once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from dbray.errors import Problem, SpecError


def normal_form(identifier: str) -> str:
    """Return what CLIP, and people, make of a spelling: lower case, single spaces."""
    return " ".join(identifier.lower().split())


def fewest_tokens(
    candidates: Sequence[str], num_subjects: int, used: Iterable[str], avoided: Collection[str] = ()
) -> int:
    """Return the fewest tokens per identifier, at most three, that give each subject its own."""
    tokens = _without(_distinct(candidates), avoided)
    forms = {normal_form(identifier) for identifier in used}
    enough = (k for k in (1, 2) if num_subjects <= _num_free(tokens, k, forms))
    return next(enough, 3)


def assign(  # noqa: PLR0913 - what decides a draw
    candidates: Sequence[str],
    subject_ids: Iterable[str],
    given: Mapping[str, str],
    taken: Collection[str],
    seed: int,
    num_tokens: int,
    avoided: Collection[str] = (),
) -> dict[str, str]:
    """Give every subject an identifier of `num_tokens` candidates, joined by spaces.

    Drawn uniformly without replacement. A subject's draw follows from (seed, subject id) alone.
    Only where two subjects draw the same does the one whose id sorts first keep it, so the order of
    the manifest has no effect. A manifest that grows may still change such a subject's draw: pass
    what is published already in `given`.

    Args:
        candidates: From `candidates`.
        subject_ids: All subjects, also those in `given`.
        given: Identifiers that do not change, by subject id: chosen by the user, or published.
        taken: Identifiers that must not be used again.
        seed: Root of the draw.
        num_tokens: Tokens per identifier (the paper's k).
        avoided: Candidates that no identifier may contain; other draws do not change with them.

    Returns:
        The identifier of each of `subject_ids`, in their order.

    Raises:
        SpecError: when there are fewer identifiers than subjects.
    """
    tokens, avoided = _distinct(candidates), {token.lower() for token in avoided}
    order = list(dict.fromkeys(subject_ids))
    used = {normal_form(identifier) for identifier in (*given.values(), *taken)}
    waiting = sorted(subject for subject in order if subject not in given)
    allowed = _without(tokens, avoided)
    free = _num_free(allowed, num_tokens, used)
    if len(waiting) > free:
        raise SpecError([_too_few(len(allowed), num_tokens, free, len(waiting))])
    assigned = dict(given)
    for subject in waiting:
        assigned[subject] = _draw(tokens, num_tokens, used, avoided, f"{seed}/{subject}")
        used.add(normal_form(assigned[subject]))
    return {subject: assigned[subject] for subject in order}


def _count(num_candidates: int, num_tokens: int) -> int:
    """Count the ordered draws of `num_tokens` different candidates."""
    total = 1
    for drawn in range(num_tokens):
        total *= max(0, num_candidates - drawn)
    return total


def _distinct(candidates: Sequence[str]) -> list[str]:
    """Keep one of those that differ only by case."""
    return list({token.lower(): token for token in candidates}.values())


def _without(tokens: Sequence[str], avoided: Collection[str]) -> list[str]:
    return [token for token in tokens if token.lower() not in avoided]


def _num_free(tokens: Sequence[str], num_tokens: int, used: set[str]) -> int:
    """Count the identifiers that can be drawn and are not used."""
    known = {token.lower() for token in tokens}
    split = (identifier.split() for identifier in used)
    drawn = sum(
        len(words) == num_tokens == len(set(words)) and known.issuperset(words) for words in split
    )
    return _count(len(tokens), num_tokens) - drawn


def _draw(
    tokens: Sequence[str], num_tokens: int, used: set[str], avoided: set[str], root: str
) -> str:
    """Draw until an identifier is free. The caller has checked that there is one."""
    total, attempt = _count(len(tokens), num_tokens), 0
    while True:
        drawn = hashlib.sha256(f"{root}/{attempt}".encode()).digest()
        identifier = _nth(tokens, num_tokens, int.from_bytes(drawn) % total)
        form = normal_form(identifier)
        if form not in used and avoided.isdisjoint(form.split()):
            return identifier
        attempt += 1


def _nth(tokens: Sequence[str], num_tokens: int, number: int) -> str:
    """Return the draw with a number: its digits in a falling base choose among the tokens left."""
    chosen: list[int] = []
    for drawn in range(num_tokens):
        number, index = divmod(number, len(tokens) - drawn)
        for earlier in sorted(chosen):
            index += index >= earlier
        chosen.append(index)
    return " ".join(tokens[index] for index in chosen)


def _too_few(num_candidates: int, num_tokens: int, free: int, wanted: int) -> Problem:
    total = _count(num_candidates, num_tokens)
    what = (
        f"{wanted} subjects need an identifier, but of {total} ({num_candidates} rare tokens, "
        f"{num_tokens} per identifier) only {free} are free"
    )
    more = f"set num_tokens: {num_tokens + 1}" if num_tokens < 3 else "give identifiers by hand"
    return Problem("error", "identifiers", what, f"widen rank_range, or {more}")
