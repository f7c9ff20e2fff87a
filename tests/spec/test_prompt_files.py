"""Files of prompts: a prompt per line, and the format of google/dreambooth."""

from __future__ import annotations

import pytest

from dbray.errors import SpecError
from dbray.spec.prompt_files import read_prompts
from dbray.spec.suites import SUITES

BENCHMARK = """Classes

subject_name,class
dog,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
]
"""


def test_the_benchmark_s_own_file_is_read(tmp_path):
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(BENCHMARK)
    found = read_prompts(str(file))
    assert found.objects == ("a {subject} in the jungle", "a red {subject}")
    assert found.live == ("a {subject} wearing a red hat",)
    assert set(found.objects) <= set(SUITES["dreambench"].objects)


def test_a_plain_file_has_a_prompt_per_line(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# mine\n\na {subject} on the moon\n  a {subject} and a {class}  \n")
    found = read_prompts(str(file))
    assert found.objects == found.live == ("a {subject} on the moon", "a {subject} and a {class}")


def test_a_suite_is_found_by_its_name():
    assert read_prompts("accessories") == SUITES["accessories"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a dog\n", r"mine\.txt:1: 'a dog' does not contain \{subject\}"),
        ("a {subject}\na {subject} {0}\n", r"mine\.txt:2: .* has a placeholder other than"),
        ("# nothing\n", "has no prompts"),
    ],
)
def test_mistakes_are_reported_with_their_line(tmp_path, text, message):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_prompts(str(file))


def test_an_unknown_name_is_an_error():
    with pytest.raises(SpecError, match="neither a file nor a suite"):
        read_prompts("accesories")
