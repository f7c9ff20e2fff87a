"""Annexes: committed folders next to the weights of a published model, such as its previews.

Owns how an annex is published, replaced and read. An annex has its own marker, can change while its
model does not, and is removed with its model. A damaged annex is logged and counts as missing, so
that it is made again. Does not know what the files mean: see dbray.records.previews.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dbray.errors import DigestMismatch, FileMissing, ModelNotFound
from dbray.records.models import folder_of
from dbray.storage.committed import Committed
from dbray.storage.store import FileRecord, Store, digest

logger = logging.getLogger(__name__)


class Annex:
    """One annex of a model.

    Args:
        store: where the model is published.
        model: full name, 'id@revision'.
        name: name of the annex, and of its folder in the model's folder.

    Every method raises StoreError if storage fails: the annex may exist then.
    """

    def __init__(self, store: Store, model: str, name: str) -> None:
        self._store, self._model, self._name = store, model, name
        self._model_folder = folder_of(model)
        self._folder = f"{self._model_folder}/{name}"

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Publish the annex; a different earlier one is replaced.

        Raises:
            ModelNotFound: the model is not published.
        """
        if not self._store.is_committed(self._model_folder):
            raise ModelNotFound(f"{self._model} is not published, so it cannot have {self._name}")
        if self._store.is_committed(self._folder) and self.read() != dict(files):
            self._store.remove(self._folder)
        self._store.commit(self._folder, files)

    def has(self, files: Mapping[str, bytes]) -> bool:
        """Return whether the annex contains these files; only its marker is read."""
        found = self._files(self._committed())
        return bool(found) and all(
            name in found and found[name].sha256 == digest(data) for name, data in files.items()
        )

    def names(self) -> list[str]:
        """Return the names of the files of the annex; empty if there is none."""
        return sorted(self._files(self._committed()))

    def read(self) -> dict[str, bytes] | None:
        """Return every file by name; None if there is no annex or a file is damaged."""
        folder = self._committed()
        found = {name: self._read(folder, name) for name in self._files(folder)}
        whole = {name: data for name, data in found.items() if data is not None}
        return whole if whole and len(whole) == len(found) else None

    def file(self, name: str) -> bytes | None:
        """Return one file; None if it is not in the annex or is damaged."""
        folder = self._committed()
        return self._read(folder, name) if name in self._files(folder) else None

    def _committed(self) -> Committed:
        return Committed(self._store, self._folder)

    def _files(self, folder: Committed) -> dict[str, FileRecord]:
        """Return the files in the marker; empty if the marker is missing or damaged."""
        try:
            return folder.files
        except FileMissing:
            return {}
        except DigestMismatch as exc:
            self._warn(exc)
            return {}

    def _read(self, folder: Committed, name: str) -> bytes | None:
        try:
            return folder.read(name)
        except DigestMismatch as exc:
            self._warn(exc)
            return None

    def _warn(self, exc: DigestMismatch) -> None:
        logger.warning("ignoring damaged %s model=%s: %s", self._name, self._model, exc)
