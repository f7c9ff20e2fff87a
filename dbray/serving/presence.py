"""Whether a registry exists at all: a missing folder does not mean that its models were deleted."""

from __future__ import annotations

from pathlib import Path

from dbray.errors import StoreError
from dbray.storage.store import Store

_MODELS = "models"


class Presence:
    """Remembers whether a registry on this machine has ever held models."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._has_held_models = store.is_local and self._holds_models()

    def check(self) -> None:
        """Raise StoreError if the registry's folder is missing, or emptied from outside.

        The mount point of an unmounted disk exists and is empty; a takedown leaves the folder of
        models. Object stores have no folders, and raise errors of their own.
        """
        if not self._store.is_local:
            return
        exists = self._holds_models()
        if self._store.is_missing or (self._has_held_models and not exists):
            raise StoreError(f"{self._store.uri} is missing or not mounted")
        self._has_held_models = exists

    def _holds_models(self) -> bool:
        return Path(self._store.uri, _MODELS).is_dir()
