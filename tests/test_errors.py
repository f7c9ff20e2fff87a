"""Messages of errors and problems contain no secrets of the addresses that they quote."""

from __future__ import annotations

import pickle

import pytest

from dbray import errors
from dbray.errors import DbrayError, Problem, SpecError, StoreError, without_secrets


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("s3://KEY:SECRET@bucket/a.png", "s3://***@bucket/a.png"),
        ("s3://KEY:SEC/RET@bucket/a.png", "s3://***@bucket/a.png"),
        ("s3://KEY:SEC@RET@bucket/a.png", "s3://***@bucket/a.png"),
        ("it is 'ftp://u:SECRET@h'", "it is 'ftp://***@h'"),
        ("abfss://c@a.net/x?client_secret=SE/CRET@", "abfss://***@a.net/x?***"),
        ("cannot read 's3://b/k?secret=SECRET': no", "cannot read 's3://b/k?***': no"),
        ("s3://a?x=SECRET,s3://K:SECRET@b", "s3://a?***://***@b"),
        ("s3://K:SECRET@a and s3://K:SECRET@b", "s3://***@a and s3://***@b"),
        ("no such 's3://KEY:SEC', whose rest is cut", "no such 's3://***', whose rest is cut"),
        # Not secret:
        ("('http://127.0.0.1:8000')", "('http://127.0.0.1:8000')"),
        ("http://[::1]:8000/a", "http://[::1]:8000/a"),
        ("s3://bucket/a@2x.png", "s3://bucket/a@2x.png"),
        ("http://127.0.0.1:8000/a@2x.png", "http://127.0.0.1:8000/a@2x.png"),
        ("give s3:// or gs://? me@home", "give s3:// or gs://? me@home"),
        ("what is a/b@c?", "what is a/b@c?"),
    ],
)
def test_secrets_in_addresses_are_blanked(said, shown):
    assert without_secrets(said) == shown
    assert without_secrets(shown) == shown
    problem = Problem("error", said, said, said)
    assert (problem.where, problem.what, problem.fix) == (shown, shown, shown)
    for error in (StoreError(said), pickle.loads(pickle.dumps(StoreError(said)))):
        assert str(error) == shown
    assert "SECRET" not in repr(SpecError([problem]))


def test_a_long_text_is_blanked_in_one_pass():
    """A remote list may contain this: quadratic work would take more than a day."""
    assert without_secrets("://a:b" * 1_000_000) == "://***" * 1_000_000
    assert without_secrets("://a?b" + ")" * 1_000_000 + "c") == "://a?***"


def test_every_error_survives_pickling():
    classes = [value for value in vars(errors).values()
               if isinstance(value, type) and issubclass(value, DbrayError)]  # fmt: skip
    assert len(classes) > 10
    for error_class in classes:
        problem = Problem("error", "here", "is wrong", "mend it")
        error = error_class([problem] if error_class is SpecError else "what happened")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is error_class
        assert str(again) == str(error)
        assert again.exit_code in {1, 2, 3, 4}
