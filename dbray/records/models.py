"""Published models: where they are, and how they are published, found, listed and removed.

Owns the tree `models/<subject id>/<revision>/`, with the file model.json in each. There is no
index: one look-up finds a model, whatever their number. Does not know how a model was made or
served, or what other files its folder has: those are annexes.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from dbray.errors import (
    DigestMismatch,
    FileMissing,
    ModelDamaged,
    ModelNotFound,
    RegistryError,
    StoreError,
)
from dbray.records.record import REVISION_LENGTH, REVISION_PATTERN, ModelRecord, Revision
from dbray.spec.canon import SUBJECT_ID_PATTERN
from dbray.storage.committed import Committed
from dbray.storage.store import Store

MIN_PREFIX_LENGTH = 6
RECORD_FILE = "model.json"

_ROOT = "models"
_PREFIX_PATTERN = re.compile(rf"[0-9a-f]{{{MIN_PREFIX_LENGTH},{REVISION_LENGTH}}}")
_WEIGHTS_PATTERN = re.compile(r"[a-z0-9_]+\.safetensors")
_NUM_READERS = 16

logger = logging.getLogger(__name__)


class Registry:
    """The models in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def publish(self, record: ModelRecord, weights: Mapping[str, bytes | Path]) -> None:
        """Publish a model atomically. Repeating it is harmless; a damaged model is replaced.

        Raises:
            RegistryError: the record and the weights do not match, or the id belongs to another
                tenant.
            StoreError: nothing was published.
        """
        _check_record(record, weights)
        if any(other.tenant != record.tenant for other in self.revisions(record.id)):
            raise RegistryError(
                f"the id {record.id!r} belongs to another tenant here; choose another id"
            )
        folder = _folder(record.id, record.revision)
        if self.store.is_committed(folder):
            damaged = self._damage(folder)
            if not damaged:
                return
            logger.warning("replacing damaged model=%s files=%s", record.name, damaged)
            self.store.remove(folder)
        text = record.model_dump_json(indent=1, exclude_none=False) + "\n"
        self.store.commit(folder, {**weights, RECORD_FILE: text.encode()})

    @property
    def is_there(self) -> bool:
        """Whether the store has a tree of models.

        False before the first model is published, and when the folder or its mount is missing.
        """
        return self.store.exists(_ROOT)

    def has(self, model_id: str, revision: str) -> bool:
        """Return whether a revision is published: one look-up."""
        return self.store.is_committed(folder_of(f"{model_id}@{revision}"))

    def has_record(self, model_id: str, revision: str) -> bool:
        """Return whether a revision is published with an undamaged record."""
        folder = Committed(self.store, folder_of(f"{model_id}@{revision}"))
        try:
            folder.read(RECORD_FILE)
        except FileMissing:
            return False
        except DigestMismatch as exc:
            logger.warning("damaged model=%s@%s: %s", model_id, revision, exc)
            return False
        return True

    def find(self, model: str) -> ModelRecord:
        """Return the record of 'id' or 'id@revision'; see `open`."""
        return self.open(model).record

    def open(self, model: str, suggest: bool = True) -> Revision:
        """Find 'id' (its latest revision) or 'id@revision' (a unique prefix is enough).

        With `suggest`, the error for an unknown id suggests similar ids, which lists all models.

        Raises:
            ModelNotFound: it is not published.
            ModelDamaged: it is published, but no matching revision can be read.
            RegistryError: `model` is not a valid name, or its prefix matches several revisions.
        """
        model_id, prefix = _split(model)
        if prefix is None:
            found, damage = self._open_all(model_id)
            if not found:
                raise damage or self._not_found(model_id, suggest)
            return found[-1]
        if len(prefix) == REVISION_LENGTH:
            with suppress(ModelNotFound):
                return self._open(model_id, prefix)
        return self._open(model_id, self._complete(model_id, prefix, suggest))

    def revisions(self, model_id: str) -> list[ModelRecord]:
        """Return every readable revision of a model, oldest first; damaged ones are logged.

        Raises:
            StoreError: storage failed. Skipping a revision could make an older one the latest.
        """
        _check_id(model_id)
        found, _ = self._open_all(model_id)
        return [revision.record for revision in found]

    def list(self) -> Iterator[ModelRecord]:
        """Yield the latest revision of every model, by id."""
        ids = [name for name in self.store.names(_ROOT) if re.fullmatch(SUBJECT_ID_PATTERN, name)]
        pool = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="registry")
        try:
            for found in pool.map(self.revisions, ids):
                if found:
                    yield found[-1]
        finally:
            pool.shutdown(cancel_futures=True)

    def weights(self, record: ModelRecord, destination: Path) -> dict[str, Path]:
        """Return verified local files of a model's weights; see `Committed.fetch`."""
        folder = Committed(self.store, _folder(record.id, record.revision))
        return Revision(record, folder).fetch_weights(destination)

    def remove(self, model: str) -> list[str]:
        """Remove 'id' (all revisions) or 'id@revision'; return the removed ones as 'id@revision'.

        Annexes and the files of an interrupted publication are removed too.
        """
        model_id, prefix = _split(model)
        published = self._published(model_id)
        if prefix is not None:
            doomed = [self._complete(model_id, prefix)]
        elif published or self.store.exists(f"{_ROOT}/{model_id}"):
            doomed = published
        else:
            raise self._not_found(model_id)
        for revision in doomed:
            self.store.remove(_folder(model_id, revision))
        if set(doomed) == set(published):
            self.store.remove(f"{_ROOT}/{model_id}")
        return [f"{model_id}@{revision}" for revision in doomed]

    def _revision_names(self, model_id: str) -> list[str]:
        names = self.store.names(f"{_ROOT}/{model_id}")
        return [name for name in names if re.fullmatch(REVISION_PATTERN, name)]

    def _published(self, model_id: str) -> list[str]:
        names = self._revision_names(model_id)
        return [name for name in names if self.store.is_committed(_folder(model_id, name))]

    def _complete(self, model_id: str, prefix: str, suggest: bool = True) -> str:
        """Complete the prefix of a revision."""
        published = self._published(model_id)
        if not published:
            raise self._not_found(model_id, suggest)
        fitting = [revision for revision in published if revision.startswith(prefix)]
        if len(fitting) > 1:
            raise RegistryError(
                f"{model_id}@{prefix} matches {', '.join(fitting)}: write more of it"
            )
        if not fitting:
            raise ModelNotFound(
                f"{model_id} has no revision {prefix}; it has {', '.join(published)}"
            )
        return fitting[0]

    def _open_all(self, model_id: str) -> tuple[list[Revision], ModelDamaged | None]:
        """Return every readable revision, oldest first, and the error of one that is unreadable."""
        found, damage = [], None
        for revision in self._revision_names(model_id):
            try:
                found.append(self._open(model_id, revision))
            except ModelNotFound:  # not published yet, or removed since it was listed
                continue
            except ModelDamaged as exc:
                logger.warning("skipping model=%s@%s: %s", model_id, revision, exc)
                damage = exc
        found.sort(key=lambda one: (one.record.created_at, one.record.revision))
        return found, damage

    def _open(self, model_id: str, revision: str) -> Revision:
        name = f"{model_id}@{revision}"
        folder = Committed(self.store, _folder(model_id, revision))
        try:
            if RECORD_FILE not in folder.files:
                raise DigestMismatch(f"{name} was published without {RECORD_FILE}")
            record = self._record(name, folder)
        except FileMissing as exc:
            raise ModelNotFound(f"{name} is not published") from exc
        except DigestMismatch as exc:
            if self.store.is_committed(_folder(model_id, revision)):
                raise ModelDamaged(f"{name} is damaged: {exc}") from exc
            raise ModelNotFound(f"{name} was removed") from exc
        return Revision(record, folder)

    def _record(self, name: str, folder: Committed) -> ModelRecord:
        """Read a record; it is the same as long as its digest in the marker is the same."""
        data = folder.read(RECORD_FILE)
        try:
            # A newer dbray may have written fields that this version does not know.
            record = ModelRecord.model_validate_json(data, extra="ignore")
        except ValidationError as exc:
            raise ModelDamaged(f"{name}: {RECORD_FILE} is unreadable: {exc}") from exc
        if record.name != name:
            raise ModelDamaged(f"{name} contains the record of {record.name}")
        if not record.has_its_revision:
            raise ModelDamaged(f"{name}: the revision is not the start of the fingerprint")
        return record

    def _damage(self, folder: str) -> list[str]:
        try:
            return Committed(self.store, folder).damaged()
        except StoreError as exc:
            return [str(exc)]

    def _not_found(self, model_id: str, suggest: bool = True) -> ModelNotFound:
        known = self.store.names(_ROOT) if suggest else []
        near = difflib.get_close_matches(model_id, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return ModelNotFound(
            f"no model {model_id!r} is published in {self.store.location('')}{hint}"
        )


def folder_of(model: str) -> str:
    """Return the folder of a full 'id@revision' in a store. Raises RegistryError for bad names."""
    model_id, _, revision = model.partition("@")
    _check_id(model_id)
    _check_revision(revision)
    return _folder(model_id, revision)


def _folder(model_id: str, revision: str) -> str:
    return f"{_ROOT}/{model_id}/{revision}"


def _split(model: str) -> tuple[str, str | None]:
    """Split 'id' or 'id@revision', and check both before any path is built from them."""
    model_id, at, prefix = model.partition("@")
    _check_id(model_id)
    if not at:
        return model_id, None
    if not _PREFIX_PATTERN.fullmatch(prefix):
        raise RegistryError(
            f"{prefix!r} is not a revision: write its first {MIN_PREFIX_LENGTH} to "
            f"{REVISION_LENGTH} hex digits"
        )
    return model_id, prefix


def _check_id(model_id: str) -> None:
    if not re.fullmatch(SUBJECT_ID_PATTERN, model_id):
        raise RegistryError(
            f"{model_id!r:.80} is not a model id: lower-case letters, digits, '.', '_' and '-', at "
            "most 63, letter or digit first"
        )


def _check_revision(revision: str) -> None:
    if not re.fullmatch(REVISION_PATTERN, revision):
        raise RegistryError(
            f"{revision!r:.80} is not a revision: it has {REVISION_LENGTH} hex digits"
        )


def _check_record(record: ModelRecord, weights: Mapping[str, bytes | Path]) -> None:
    if not record.has_its_revision:
        raise RegistryError(f"{record.name}: the revision is not the start of the fingerprint")
    if set(record.files) != set(weights):
        raise RegistryError(
            f"{record.name}: the record lists {sorted(record.files)}, but the weights are "
            f"{sorted(weights)}"
        )
    if bad := [name for name in weights if not _WEIGHTS_PATTERN.fullmatch(name)]:
        raise RegistryError(f"{record.name}: {bad} are not names of safetensors files")
