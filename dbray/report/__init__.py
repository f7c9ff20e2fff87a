"""The report of a job: one HTML file that opens from disk.

Reads what a job left on storage and changes nothing, so a report can be written again at any time,
also for a job that was interrupted. `contents` reads, `thumbnails` shrinks images, `headline` and
`page` choose what is shown; the page itself is the Jinja template page.html with page.css, parts.js
and page.js.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dbray.errors import SpecError
from dbray.report.contents import Contents, read_contents
from dbray.report.page import render
from dbray.spec.canon import SUBJECT_ID_PATTERN
from dbray.spec.subject import Subject
from dbray.storage.store import Store

__all__ = ["build_report", "write_report"]


def build_report(
    store: Store, job_id: str, *, photographs: Callable[[Subject], list[bytes]] | None = None
) -> str:
    """Write `jobs/<job id>/report.html` and return that path, relative to the store.

    Args:
        store: The job's storage.
        job_id: Name of a job that has run there, to its end or not.
        photographs: Gives the image files of a subject. None: the small copies that were published
            with its previews, else the files that the manifest names. Files that can no longer be
            read are left out, and the page says so.

    Raises:
        SpecError: `job_id` is not a job id.
        StoreError: there is no such job, or storage cannot be read or written.
    """
    return write_report(store, job_id, photographs)[0]


def write_report(
    store: Store, job_id: str, photographs: Callable[[Subject], list[bytes]] | None = None
) -> tuple[str, Contents]:
    """Write a report as `build_report` does; return its path, and what was read for it."""
    if not re.fullmatch(SUBJECT_ID_PATTERN, job_id):
        what, fix = f"{job_id!r} is not a job id", "give the name of a folder in <storage>/jobs"
        raise SpecError.of("job id", what, fix)
    contents = read_contents(store, job_id, photographs)
    path = f"jobs/{job_id}/report.html"
    # Names of files may hold bytes that are not text; write the rest of the report all the same.
    store.write_bytes(path, render(contents).encode("utf-8", "replace"))
    return path, contents
