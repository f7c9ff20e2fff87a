"""Commands about jobs on a running cluster: submit, stop, and the list of submitted jobs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dbray.cli.output import print_problems, print_table, shell_command
from dbray.errors import StoreError
from dbray.planning.checks import check_file
from dbray.storage.store import Store

if TYPE_CHECKING:
    from dbray.run.submit import JobServer


def submit(args: argparse.Namespace) -> int:
    """Send a job to a cluster, and follow it."""
    _send_token()
    from dbray.planning.ids import settle_id
    from dbray.run.submit import check_storage, pack

    job_file = Path(args.job)
    ready = check_file(job_file).ready(args.skip_invalid)
    check_storage(ready.job.storage, args.address)
    with suppress(StoreError):  # the cluster may reach storage that this machine does not
        ready = settle_id(ready, Store(ready.job.storage))
    print_problems(ready.warnings)
    with tempfile.TemporaryDirectory(prefix="dbray-") as folder:
        pack(job_file, ready, Path(folder))
        server = _server(args.address)
        submission_id = server.submit(Path(folder), ready.job.id, _options(args))
    print(f"submitted {submission_id}")
    if args.no_wait:
        _print_hints(submission_id, args.address)
        return 0
    try:
        return server.follow(submission_id, _write)
    except KeyboardInterrupt:
        print("\nno longer following; the job continues")
        _print_hints(submission_id, args.address)
        return 130


def _options(args: argparse.Namespace) -> list[str]:
    """Return the options of `dbray run` on the cluster."""
    options = [] if args.max_failures is None else ["--max-failures", str(args.max_failures)]
    options += ["--retry-failed"] if args.retry_failed else []
    return [*options, "--skip-invalid"] if args.skip_invalid else options


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_hints(submission_id: str, address: str) -> None:
    print("  " + shell_command("status", "--address", address))
    print("  " + shell_command("stop", submission_id, "--address", address))


def stop(args: argparse.Namespace) -> int:
    """Stop a job that was sent to a cluster."""
    was_running = _server(args.address).stop(args.submission)
    print(f"{args.submission} {'is stopping' if was_running else 'has already ended'}")
    return 0


def print_submissions(address: str) -> int:
    """List the jobs that were sent to a cluster."""
    found = _server(address).submissions()
    if found:
        rows = [(one.id, one.state, one.message) for one in found]
        print_table(rows, ("submission", "state", "message"))
    else:
        print(f"no jobs submitted to {address}")
    return 0


def _send_token() -> None:
    """Make Ray's client send the token that it finds: it does so in one mode only."""
    default = Path("~/.ray/auth_token").expanduser()
    if default.exists() or os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _server(address: str) -> JobServer:
    _send_token()
    from dbray.run.submit import JobServer

    for handler in logging.getLogger("ray").handlers:  # the loggers have levels of their own
        handler.setLevel(logging.ERROR)  # every request is logged
    return JobServer(address)
