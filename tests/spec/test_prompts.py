"""Placeholders of prompts."""

from __future__ import annotations

from dbray.spec.prompts import fill_prompt


def test_prompts_are_filled():
    assert fill_prompt("a {subject} and a {class}", "dog", "zb") == "a zb dog and a dog"
    assert fill_prompt("a {subject}", "dog") == "a dog"
