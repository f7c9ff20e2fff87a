"""The Subject, and how it is made from a listed item.

Its images are paths or URIs; dbray.subjects checks that they exist and decode.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from dbray.errors import SpecError
from dbray.spec.base import Spec
from dbray.spec.canon import UNTOUCHED, SubjectId
from dbray.spec.paths import Address
from dbray.spec.problems import problems_of
from dbray.spec.prompts import AUTO_NOUN, NO_NOUN
from dbray.spec.text_files import Item


def _in_list(value: Any) -> Any:
    return (value,) if isinstance(value, str | os.PathLike) else value


class Subject(Spec):
    """What a model is personalised for: a few photographs of one thing, and its class noun."""

    id: SubjectId = Field(description="Unique name; becomes the published model's id.")
    class_noun: str = Field(
        min_length=1,
        max_length=64,
        description='Coarse class in one or two words, in the singular and without article: "dog". '
        "auto: the job's `scoring.clip` chooses it. none: no class noun in any prompt and no class "
        "to keep, as in the paper's ablation.",
    )
    images: Annotated[tuple[Address, ...], BeforeValidator(_in_list)] = Field(
        description="Paths or URIs of 3 to 6 photographs, or the path of a folder of them on this "
        "machine."
    )
    identifier: str | None = Field(
        default=None,
        description="Rare token(s) to bind; chosen by dbray if absent.",
        max_length=64,
    )
    captions: tuple[str, ...] | None = Field(
        default=None,
        description="One prompt per image, with {subject} for '[identifier] [class noun]'. "
        "Absent: the recipe's prompt for every image.",
    )

    true_class_noun: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="The right class noun, if class_noun is a wrong one on purpose, as in the "
        "paper's ablation. Only recorded.",
    )
    description: str | None = Field(
        default=None,
        min_length=1,
        max_length=300,
        description='What it looks like, without article: "yellow clock with a white face". Only '
        "`dbray ablate method` reads it, to prompt the untouched base with it.",
    )

    @field_validator("description")
    @classmethod
    def _plain_description(cls, description: str | None) -> str | None:
        if description is not None and any(char in "{}" for char in description):
            raise ValueError("a description is plain words, such as 'yellow clock with a face'")
        return description and " ".join(description.split())

    @property
    def ablation(self) -> str | None:
        """What is wrong with the class noun on purpose; None if nothing is."""
        if self.class_noun == NO_NOUN:
            return "no class noun"
        if self.true_class_noun in (None, self.class_noun):
            return None
        return f"the class noun {self.class_noun} in place of {self.true_class_noun}"

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, subject_id: str) -> str:
        if subject_id == UNTOUCHED:
            raise ValueError(f"{UNTOUCHED!r} names the untouched base; give another id")
        return subject_id

    @field_validator("class_noun")
    @classmethod
    def _plain_noun(cls, noun: str) -> str:
        cleaned = " ".join(noun.split())
        if not cleaned or any(not char.isprintable() or char in "{}" for char in cleaned):
            raise ValueError("a class noun is one or more plain words, such as 'dog'")
        return cleaned.lower() if cleaned.lower() in (NO_NOUN, AUTO_NOUN) else cleaned


def subject_fields(item: Item) -> dict[str, Any]:
    """Return the fields of a listed subject, under their canonical names and in full form.

    Raises:
        SpecError: the item is not a mapping.
    """
    if not isinstance(item.value, dict):
        fix = "write a mapping with 'id', 'class_noun' and 'images'"
        raise SpecError.of(item.where, "is not a subject", fix)
    fields = dict(item.value)
    if "subject_id" in fields and "id" not in fields:
        fields["id"] = fields.pop("subject_id")
    if isinstance(fields.get("images"), str):
        fields["images"] = [fields["images"]]
    return fields


def make_subject(item: Item) -> Subject:
    """Make the subject from an item. Raises SpecError with every mistake in it."""
    fields = subject_fields(item)
    try:
        return Subject.model_validate(fields)
    except ValidationError as exc:
        name = fields["id"] if isinstance(fields.get("id"), str) else None
        problems = problems_of(exc, item.file, item.lines, Subject)
        raise SpecError(replace(one, subject=name) for one in problems) from exc
