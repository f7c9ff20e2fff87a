"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def number_from(least: int) -> Callable[[str], int]:
    """Make a type of whole numbers of at least `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {text}")
        return int(text)

    return number
