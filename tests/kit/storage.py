"""Counting the requests of a test to storage."""

from __future__ import annotations

from dbray.storage.folder import Folder


def count_requests(monkeypatch) -> list[tuple[str, str]]:
    """Record every later request to local storage: its kind and its path.

    On an object store each would be at least one round trip.
    """
    seen = []
    for name in ("open", "exists", "names", "write", "remove", "commit"):
        real = getattr(Folder, name)

        def counted(self, path, *args, _name=name, _real=real):
            seen.append((_name, path))
            return _real(self, path, *args)

        monkeypatch.setattr(Folder, name, counted)
    return seen
