"""Whether a registry is there at all: a folder that vanished does not mean deleted models."""

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

        An unmounted folder is there and empty. A takedown leaves the folder of models; object
        stores have no folders, and report what they cannot reach themselves.
        """
        if not self._store.is_local:
            return
        is_there = self._holds_models()
        if self._store.is_missing or (self._has_held_models and not is_there):
            raise StoreError(f"{self._store.uri} is missing or not mounted")
        self._has_held_models = is_there

    def _holds_models(self) -> bool:
        return Path(self._store.uri, _MODELS).is_dir()
