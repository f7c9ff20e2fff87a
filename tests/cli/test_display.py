"""Output that cannot be written does not end a command or print a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kit.worlds import write_job

from dbray.cli import main
from dbray.cli.display import Display, displays
from dbray.cli.output import print_table

DBRAY = f"{sys.executable} -m dbray"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["schema", "--version", "--help"])
def test_a_full_disk_is_reported_without_a_traceback(command):
    done = shell(f"{DBRAY} {command} > /dev/full")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if command == "schema":
        assert (done.returncode, done.stderr) == (
            1, "error: the output cannot be written: No space left on device\n",
        )  # fmt: skip


def test_a_closed_output_is_reported():
    done = shell(f"{DBRAY} schema >&-")
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: Bad file descriptor\n"


def test_a_reader_that_leaves_does_not_change_the_exit_code(tmp_path, tiny_base):
    job = write_job(tmp_path, tiny_base, {"rex": "dog"})
    (tmp_path / "photos" / "rex" / "0.png").write_text("not an image")
    done = shell(f"{DBRAY} validate {job} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_display_drops_text_after_its_stream_fails():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        display = Display(stream)
        display.write("text")
        display.flush()
        display.write("more")
        display.flush()
        assert isinstance(display.failure, BrokenPipeError)
        assert display.loss is None


def test_displays_restores_the_streams():
    before = sys.stdout, sys.stderr
    with displays():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("dbray 0.")


def test_a_table_in_a_pipe_has_a_line_per_row_without_padding(capsys):
    print_table([("base", "a" * 300), ("kept", "0 [subjects]")], ("what", "figure"))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["what  figure", f"base  {'a' * 300}", "kept  0 [subjects]"]
