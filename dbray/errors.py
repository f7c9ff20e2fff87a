"""The tree of errors, and the problems that validation lists.

    DbrayError
    ├── SpecError            the user's input has mistakes; nothing ran       exit 2
    ├── SubjectError         one subject's images or fields are unusable      *
    ├── BaseError            the base model cannot be found, read or trusted  exit 2
    ├── StoreError           storage cannot be read or written                exit 1
    │   ├── FileMissing      a file does not exist
    │   └── DigestMismatch   a stored file differs from the published one
    ├── RegistryError        a registry request cannot be carried out         exit 2
    │   ├── ModelNotFound
    │   └── ModelDamaged     the model is published, but its record is damaged
    ├── TrainError           a subject's fine-tuning failed                   *
    │   ├── Diverged         the loss is not finite
    │   └── OutOfMemory
    ├── LaneLost             the workers of a lane died                       *
    ├── JobBusy              another run holds this job                       exit 1
    └── TooManyFailures      stopped at --max-failures                        exit 4

* Errors of one subject: a job that finishes without it exits with 3. If they end a whole run, such
as an actor that cannot make class images, it exits with 1. StoreError and LaneLost are often
temporary, so they are retried.

Errors cross processes by pickle, so they take positional arguments only. Their messages are kept in
logs, results and reports, so errors and problems blank the secrets in URIs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

_AFTER_SCHEME = re.compile(r"(?<=://)(?:(?!://)\S)+")
_PUNCTUATION = "\"'`.,:;)]}>"


class DbrayError(Exception):
    """An error that dbray reports to its user. `retryable`: trying again may help."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_secrets(arg) if isinstance(arg, str) else arg for arg in args))


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of validation: where, what is wrong, and how to fix it."""

    severity: Literal["error", "warning"]
    where: str
    what: str
    fix: str
    subject: str | None = None

    def __post_init__(self) -> None:
        for name in ("where", "what", "fix"):
            object.__setattr__(self, name, without_secrets(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}\n    fix: {self.fix}"


class SpecError(DbrayError):
    """The user's input has mistakes. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    @classmethod
    def of(cls, where: str, what: str, fix: str) -> SpecError:
        """Make an error with one problem."""
        return cls([Problem("error", where, what, fix)])

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class SubjectError(DbrayError):
    """One subject's images or fields are unusable; trying again will not help."""


class BaseError(DbrayError):
    """The base model cannot be found, read or trusted."""

    exit_code = 2


class StoreError(DbrayError):
    """Storage cannot be read or written. Remote storage often works at the second try."""

    retryable = True


class FileMissing(StoreError):
    """A file does not exist. On shared storage it may appear later."""


class DigestMismatch(StoreError):
    """A stored file differs from the published one: truncated, overwritten or corrupt."""

    retryable = False


class RegistryError(DbrayError):
    """A registry request cannot be carried out."""

    exit_code = 2


class ModelNotFound(RegistryError):
    """No model is published under that id or revision."""


class ModelDamaged(RegistryError):
    """A model is published, but its marker or record is damaged. Publishing it again repairs it."""


class TrainError(DbrayError):
    """A subject's fine-tuning failed."""


class Diverged(TrainError):
    """The loss is not finite. The same seed would diverge again, so it is not retried."""


class OutOfMemory(TrainError):
    """This recipe needs more memory than the device has."""


class LaneLost(DbrayError):
    """The workers of a lane died: killed, out of memory, or their device or node is gone."""

    retryable = True


class JobBusy(DbrayError):
    """Another run holds this job, or a run that was killed a short time ago seems to hold it."""


class TooManyFailures(DbrayError):
    """The job was stopped because more subjects failed than it allows."""

    exit_code = 4


def without_secrets(text: str) -> str:
    """Blank the credentials and the query of every URI in a text."""
    return _AFTER_SCHEME.sub(lambda found: _blanked(found[0]), text)


def _blanked(rest: str) -> str:
    """Blank what follows a scheme; keep the punctuation of the sentence around it."""
    uri = rest.rstrip(_PUNCTUATION)
    address, mark, query = uri.partition("?")
    authority = address.partition("/")[0]
    _, colon, port = authority.partition(":")
    # An unquoted '/' in a key ends the authority before the '@'.
    is_cut = bool(colon) and not port.isdigit() and not authority.startswith("[")
    if "@" in authority or is_cut:
        _, sign, host = address.rpartition("@")
        address = f"***@{host}" if sign else "***"
    return address + mark + ("***" if query else "") + rest[len(uri) :]


def first_line(exc: BaseException) -> str:
    """Return the first line of a foreign error's text, or its repr if it has no text."""
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), repr(exc))
