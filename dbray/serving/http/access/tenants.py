"""Who may request what: bearer keys, tenants, scopes and rates.

A key file (YAML) holds digests, never keys:

    keys:
      - name: acme-web             # appears in logs in the key's place
        sha256: 9f86d081884c...    # of the key: printf %s "$KEY" | sha256sum
        tenant: acme               # sees its own models and those without an owner; "*" sees all
        scopes: [generate]         # generate, manage (takedown), watch (metrics)
    images_per_minute:
      acme: 120                    # of all keys of a tenant together; absent: no limit

Keys are random (see `new_key`), so a plain SHA-256 cannot be reversed by guessing. A file that has
changed is read again: a key that was taken out is refused from the next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from dbray.errors import Problem, SpecError
from dbray.serving.messages import Refusal, Refused
from dbray.spec.base import Spec
from dbray.spec.canon import SUBJECT_ID_PATTERN
from dbray.spec.problems import problems_of
from dbray.spec.text_files import read_text

_log = logging.getLogger(__name__)

Scope = Literal["generate", "manage", "watch"]
EVERYONE = "*"
"""The operator's tenant, which sees the models of all tenants."""


class Key(Spec):
    """One bearer key, by its digest."""

    name: str = Field(pattern=SUBJECT_ID_PATTERN)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: Annotated[str, Field(pattern=r"^(\*|[a-z0-9][a-z0-9._-]{0,62})$")]
    scopes: frozenset[Scope] = frozenset({"generate"})

    def sees(self, owner: str | None) -> bool:
        """Whether a model of this owner exists for the key's tenant."""
        return owner is None or self.tenant in (EVERYONE, owner)

    def owns(self, owner: str | None) -> bool:
        """Whether it may take a model of this owner down."""
        return self.tenant in (EVERYONE, owner)


class KeyFile(Spec):
    """A key file."""

    keys: tuple[Key, ...] = Field(min_length=1)
    images_per_minute: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


ANYONE = Key(
    name="anyone",
    sha256="0" * 64,
    tenant=EVERYONE,
    scopes=frozenset(("generate", "manage", "watch")),
)
"""Stands for the key of requests where access is open."""

_NO_KEY = Refusal(401, "missing_api_key", "Give a key: 'Authorization: Bearer <key>'.")
_BAD_KEY = Refusal(401, "invalid_api_key", "The key is not valid.")
_NOT_LOCAL = Refusal(
    401,
    "missing_api_key",
    "This server has no keys, so it answers requests from its own machine only.",
)


def read_keys(file: Path) -> KeyFile:
    """Read a key file. Raises SpecError with every mistake."""
    try:
        key_file = KeyFile.model_validate(yaml.safe_load(read_text(file)))
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)  # not the text: it may hold a key
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise SpecError(
            [Problem("error", where, "is not valid YAML", "check the quotes")]
        ) from None
    except ValidationError as exc:
        raise SpecError(problems_of(exc, str(file))) from exc
    if len({key.sha256 for key in key_file.keys}) < len(key_file.keys):
        raise SpecError.of(str(file), "the same key is in it twice", "remove one of them")
    return key_file


def new_key() -> tuple[str, str]:
    """Draw a key; returns it, to hand over once, and its digest, to keep."""
    key = "dbray_" + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


class Gate:
    """Finds the key of a request, and counts the images of tenants.

    Without a `file`, access is open: for this machine only. `rate_share` is the part of each rate
    that this gate may grant, where several ingress replicas share the traffic. Raises SpecError for
    a wrong key file; later versions of the file with mistakes are ignored.
    """

    def __init__(
        self,
        file: Path | None,
        rate_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._stamp = _stamp(file) if file else None
        self._key_file = read_keys(file) if file else None
        self._rate_share = rate_share
        self._limits: dict[tuple[str, float], RateLimit] = {}
        self._clock = clock

    @property
    def is_open(self) -> bool:
        """Whether no keys are needed."""
        return self._file is None

    def _refresh(self) -> None:
        stamp = _stamp(self._file) if self._file else None
        if self._file is None or stamp in (None, self._stamp):
            return
        self._stamp = stamp
        try:
            self._key_file = read_keys(self._file)
        except SpecError as exc:  # not its text, which may quote the file
            _log.error("the changed key file has mistakes and is ignored: %d", len(exc.problems))

    def admit(self, authorization: str | None, client_host: str | None, scope: Scope) -> Key:
        """Return the key of a request. Raises Refused."""
        key = self._identify(authorization, client_host)
        if scope not in key.scopes:
            raise Refused(Refusal(403, "missing_scope", f"The key lacks the scope '{scope}'."))
        return key

    def _identify(self, authorization: str | None, client_host: str | None) -> Key:
        self._refresh()
        if self._key_file is None:
            if not is_loopback(client_host):
                raise Refused(_NOT_LOCAL)
            return ANYONE
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Refused(_NO_KEY)
        # The bytes as they were sent, whatever a key's characters are.
        digest = hashlib.sha256(given.strip(" \t").encode("latin-1", "replace")).hexdigest()
        found = None
        for key in self._key_file.keys:  # always all, so that the time reveals nothing
            if hmac.compare_digest(digest, key.sha256):
                found = key
        if found is None:
            raise Refused(_BAD_KEY)
        return found

    def charge(self, key: Key, num_images: int) -> None:
        """Count images against the rate of the key's tenant. Raises Refused if it is used up."""
        limit = self._limit(key)
        wait = limit.take(num_images) if limit else 0.0
        if wait > 0:
            raise Refused(Refusal(
                429, "rate_limit_exceeded",
                f"The rate of {self._rate(key):g} images per minute is used up.",
                retry_after=wait,
            ))  # fmt: skip

    def refund(self, key: Key, num_images: int) -> None:
        """Undo the charge for images that were not made."""
        limit = self._limit(key)
        if limit:
            limit.put(num_images)

    def _rate(self, key: Key) -> float | None:
        return self._key_file.images_per_minute.get(key.tenant) if self._key_file else None

    def _limit(self, key: Key) -> RateLimit | None:
        rate = self._rate(key)
        if rate is None:
            return None
        share = rate * self._rate_share / 60
        return self._limits.setdefault((key.tenant, rate), RateLimit(share, self._clock))


class RateLimit:
    """A token bucket for a minute's tokens, but at least for 10: the most of one request."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(per_second * 60, 10.0)
        self._tokens = self._most
        self._clock = clock
        self._at = clock()

    def take(self, count: float) -> float:
        """Take tokens and return 0; or take none and return the seconds until there are enough."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if count <= self._tokens:
            self._tokens -= count
            return 0.0
        return (count - self._tokens) / self._per_second

    def put(self, count: float) -> None:
        """Give tokens back."""
        self._tokens = min(self._most, self._tokens + count)


def _stamp(file: Path) -> tuple[int, int] | None:
    """A value that changes with a file's content; None while the file does not exist."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def is_loopback(host: str | None) -> bool:
    """Whether a peer's address is this machine's own."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
