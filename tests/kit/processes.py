"""The processes that a test has started, and their commands."""

from __future__ import annotations

import psutil


def started(name: str) -> list[psutil.Process]:
    """Return the living descendants of this process with `name` in their command."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if name in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """Return a process's command; "" if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
