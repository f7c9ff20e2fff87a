"""Send a job to a running cluster through Ray's job server; follow, list and stop it.

Owns what is packed and the requests to Ray. On the cluster, the job is an ordinary `dbray run`.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from dbray.errors import DbrayError, SpecError, first_line
from dbray.planning.checked import Ready
from dbray.spec.subject import Subject
from dbray.spec.text_files import parse_yaml, read_text
from dbray.subjects.validation import write_jsonl

MAX_BYTES = 400 * 2**20
"""Limit for the photographs sent with a job. Ray keeps a package, of at most 512 MiB, in the head's
memory."""
_JOB, _MANIFEST, _PHOTOS = "job.yaml", "subjects.jsonl", "photos"
_ID_PREFIX = "dbray-"
_STOPPED_CODE = 130


@dataclass(frozen=True)
class Submission:
    """A job that was sent to a cluster."""

    id: str
    state: str
    message: str


def check_storage(storage: str, address: str) -> None:
    """Raise SpecError for a local folder, unless the cluster is on this machine."""
    if "://" not in storage and not _is_this_machine(address):
        raise SpecError.of(
            "storage",
            f"{storage} is on this machine, but the cluster at {address} is not",
            "set 'storage' in the job file to one that all nodes reach, such as s3://bucket/runs "
            "or, for a disk that all of them mount, file:///mnt/runs",
        )


def _is_this_machine(address: str) -> bool:
    """Return whether a port can be opened at the address: only local addresses allow that."""
    try:
        found = socket.getaddrinfo(urlsplit(address).hostname, 0, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, place in found:
            with socket.socket(family, kind, protocol) as listener:
                listener.bind(place)
    except OSError:
        return False
    return True


def pack(job_file: Path, ready: Ready, folder: Path) -> None:
    """Write the job, its manifest and its local photographs to an empty folder.

    Skipped subjects are packed too, as far as they could be read: the run on the cluster skips them
    again, and lists them in failed.jsonl.

    Raises:
        SpecError: the photographs are too large to send with a job.
    """
    skipped = [one.subject for one in ready.invalid if one.subject is not None]
    subjects = [*(checked.subject for checked in ready.subjects), *skipped]
    _check_size(subjects)
    packed = [_with_photographs(subject, folder / _PHOTOS) for subject in subjects]
    write_jsonl(packed, folder / _MANIFEST)
    job, _ = parse_yaml(read_text(job_file), job_file)
    job |= {"id": ready.job.id, "base": ready.job.base, "storage": ready.job.storage}
    job["subjects"] = _MANIFEST
    if ready.job.serve_base is not None:
        job["serve_base"] = ready.job.serve_base
    scoring = ready.job.scoring.model_dump(include={"embedder", "clip"}, exclude_none=True)
    if scoring:
        job["scoring"] = {**(job.get("scoring") or {}), **scoring}
    (folder / _JOB).write_text(yaml.safe_dump(job, allow_unicode=True), encoding="utf-8")


def _check_size(subjects: Sequence[Subject]) -> None:
    local = (Path(image) for one in subjects for image in one.images if _is_here(image))
    size_bytes = sum(image.stat().st_size for image in local)
    if size_bytes > MAX_BYTES:
        raise SpecError.of(
            "subjects",
            f"the photographs on this machine take {size_bytes / 2**20:.0f} MiB, and at most "
            f"{MAX_BYTES / 2**20:.0f} MiB can be sent with a job",
            "copy them to storage that all nodes reach, and list them in a manifest by URI, such "
            "as s3://bucket/photos/rex/0.jpg",
        )


def _with_photographs(subject: Subject, photos: Path) -> Subject:
    """Copy a subject's local photographs; return the subject with the copies."""
    images = []
    for number, image in enumerate(subject.images):
        if _is_here(image):
            copy = photos / subject.id / f"{number}{Path(image).suffix}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, copy)
            image = str(copy)
        images.append(image)
    return subject.model_copy(update={"images": tuple(images)})


def _is_here(image: str) -> bool:
    return "://" not in image and Path(image).is_file()


class JobServer:
    """Ray's job server, at the address of the dashboard."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: JobSubmissionClient = self._request(lambda: JobSubmissionClient(address))

    def submit(self, folder: Path, job_id: str, options: Sequence[str]) -> str:
        """Start a packed job; returns the submission's id."""
        return self._request(
            lambda: self._client.submit_job(
                entrypoint=shlex.join(["dbray", "run", _JOB, *options]),
                submission_id=f"{_ID_PREFIX}{job_id}-{secrets.token_hex(4)}",
                runtime_env={"working_dir": str(folder)},
            )
        )

    def follow(self, submission_id: str, write: Callable[[str], None]) -> int:
        """Pass the job's output on until it ends; return its exit code."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(submission_id):
                write(text)

        self._request(lambda: asyncio.run(tail()))
        info = self._request(lambda: self._client.get_job_info(submission_id))
        if info.status == JobStatus.STOPPED:
            return _STOPPED_CODE
        return 0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code or 1

    def submissions(self) -> list[Submission]:
        """Return the jobs that dbray has sent to this cluster, oldest first."""
        found = self._request(self._client.list_jobs)
        ours = [one for one in found if (one.submission_id or "").startswith(_ID_PREFIX)]
        ours.sort(key=lambda one: one.start_time or 0)
        return [
            Submission(str(one.submission_id), one.status.value.lower(), one.message or "")
            for one in ours
        ]

    def stop(self, submission_id: str) -> bool:
        """Stop a job, as Ctrl-C does; returns whether it was still running."""
        return self._request(lambda: self._client.stop_job(submission_id))

    def _request(self, request: Callable[[], Any]) -> Any:
        """Make a request.

        Raises:
            SpecError: no job server answers at the address.
            DbrayError: it rejects the request.
        """
        try:
            return request()
        except (ConnectionError, ValueError) as exc:
            raise SpecError.of(
                f"--address {self._address}",
                f"cannot connect to Ray's job server: {first_line(exc)}",
                "give the address of the cluster's dashboard, such as http://head:8265",
            ) from exc
        except RuntimeError as exc:
            raise DbrayError(
                f"Ray's job server at {self._address} rejected the request: {first_line(exc)}. If "
                "the cluster requires a token, set RAY_AUTH_TOKEN to it"
            ) from exc
