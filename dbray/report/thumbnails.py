"""Thumbnails: images so small that a browser can open a page with a thousand subjects.

Owns the budget of bytes. The more images there are, the smaller each is.
"""

from __future__ import annotations

import base64
import threading

from dbray.errors import SubjectError
from dbray.storage.store import digest
from dbray.subjects import images

BUDGET_BYTES = 44_000_000
SIDES = (256, 192, 128, 96)
_QUALITIES = (95, 82, 70, 55, 40, 25)
# A typical photograph at quality 70, in bytes per pixel.
_TYPICAL = 0.27


class Thumbnails:
    """Makes thumbnails as base64 WebP that together fit the budget.

    Args:
        num_images: How many there will be, at most.
        budget_bytes: Bytes of all of them in the page.
    """

    def __init__(self, num_images: int, budget_bytes: int = BUDGET_BYTES) -> None:
        # Base64 takes four characters for three bytes.
        self._allowance = budget_bytes * 3 // 4 // max(1, num_images)
        fitting = (side for side in SIDES if side * side * _TYPICAL <= self._allowance)
        self.side = next(fitting, SIDES[-1])
        self._shared: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def shared(self) -> dict[str, str]:
        """The thumbnails that `share` made, by key."""
        return dict(sorted(self._shared.items()))

    def make(self, data: bytes) -> str | None:
        """Cut the middle square, as training does, and shrink it. None if it does not decode."""
        try:
            image = images.decode(data, "image")
        except SubjectError:
            return None
        side = min(self.side, *image.size)
        tiny = min(image.size) <= SIDES[-1]
        while True:
            [square] = images.views(image, side, "centre")
            # A tiny image is shown enlarged, where compression would be visible.
            for quality in _QUALITIES if tiny else _QUALITIES[1:]:
                encoded = images.encode_webp(square, quality=quality)
                if len(encoded) <= self._allowance or (side < 48 and quality == _QUALITIES[-1]):
                    return base64.b64encode(encoded).decode("ascii")
            side //= 2

    def share(self, data: bytes) -> str | None:
        """Make a thumbnail that many subjects show, once; return its key."""
        key = digest(data)[:16]
        with self._lock:
            known = key in self._shared
        if not known:
            thumbnail = self.make(data)
            if thumbnail is None:
                return None
            with self._lock:
                self._shared[key] = thumbnail
        return key
