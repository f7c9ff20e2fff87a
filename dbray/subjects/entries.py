"""One listed subject as far as it could be read, with every problem found in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dbray.errors import Problem, SpecError
from dbray.spec.subject import Subject, make_subject
from dbray.spec.text_files import Item

NO_IMAGES = ("has no images", "give 3 to 6 photographs of it")


@dataclass(slots=True)
class Entry:
    """One listed subject, as far as it could be read; `images` are absolute paths or URIs."""

    where: str
    name: str | None = None
    subject: Subject | None = None
    images: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    to_rename: str = "give one of them another id, or remove it"
    """The fix if another subject has the same id."""

    def error(self, what: str, fix: str) -> None:
        """Note an error, which makes the subject unusable."""
        self.problems.append(Problem("error", self.where, what, fix, self.name))

    def warn(self, what: str, fix: str) -> None:
        """Note a warning."""
        self.problems.append(Problem("warning", self.where, what, fix, self.name))

    def add(self, problems: Iterable[Problem]) -> None:
        """Add problems that were found elsewhere to the subject's."""
        self.problems += [replace(problem, subject=self.name) for problem in problems]

    def make_subject(self, item: Item) -> None:
        """Make the subject from an item, or note every mistake in it."""
        try:
            subject = make_subject(item)
        except SpecError as exc:
            self.problems += exc.problems
        else:
            self.subject = subject.model_copy(update={"images": self.images})
