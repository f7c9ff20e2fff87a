"""Locks: between descriptors, released by close, and unsupported on some disks."""

from __future__ import annotations

import errno
import fcntl
import os

from dbray.storage import locks


def test_closing_the_descriptor_releases_a_lock(tmp_path):
    first, state = locks.open_and_lock(tmp_path)
    second, other = locks.open_and_lock(tmp_path)
    assert (state, other) == ("held", "taken")
    os.close(first)
    assert locks.lock(second) == "held"
    os.close(second)


def test_locking_on_a_disk_without_locks_is_unsupported(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    descriptor, state = locks.open_and_lock(tmp_path, wait=True)
    assert state == "unsupported"
    os.close(descriptor)
