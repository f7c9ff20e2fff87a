"""The command that prints suites of prompts."""

from __future__ import annotations

import json

from dbray.cli import main
from dbray.spec.suites import SUITES


def test_the_suites_are_listed(capsys):
    assert main(["prompts"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SUITES)


def test_a_variant_is_printed_line_by_line(capsys):
    assert main(["prompts", "accessories-live"]) == 0
    assert tuple(capsys.readouterr().out.splitlines()) == SUITES["accessories"].live


def test_a_class_noun_chooses_the_variant_and_is_filled_in(capsys):
    assert main(["prompts", "novel-views", "--class", "elephant", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == "an elephant seen from the front"


def test_an_unknown_suite_is_an_error_with_the_known_ones(capsys):
    assert main(["prompts", "novel-viws"]) == 2
    assert "known are dreambench, recontextualisation" in capsys.readouterr().err
    assert main(["prompts", "accessories-live", "--class", "dog"]) == 2
