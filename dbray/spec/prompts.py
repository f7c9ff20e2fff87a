"""Prompts with placeholders: {subject} is '[identifier] [class noun]', {class} the class noun."""

from __future__ import annotations

import re

# Words that begin with a vowel sound: by their letters, with the exceptions of English.
_VOWEL_SOUND = re.compile(
    r"(?!eu|ewe|one\b|uni(?![mn])|u[st][aeiou]|uk[eu]|ur[aeiou]|ufo)[aeiou]|hour|honest|honou?r|heir",
    re.IGNORECASE,
)

NO_NOUN = "none"
"""The class noun of a subject without one: an ablation (Ruiz et al., section 4.3)."""
AUTO_NOUN = "auto"
"""In the place of a class noun: dbray chooses it, by a CLIP."""
_ANYTHING = "thing"
"""The class noun of such a subject in prompts that do not have its identifier."""


def check_template(prompt: str, allowed: tuple[str, ...], required: str | None = None) -> str:
    """Return `prompt` if its only placeholders are the allowed ones. Raises ValueError."""
    rest = prompt
    for placeholder in allowed:
        rest = rest.replace(placeholder, "")
    if "{" in rest or "}" in rest:
        raise ValueError(f"{prompt!r} has a placeholder other than {', '.join(allowed)}")
    if required and required not in prompt:
        raise ValueError(f"{prompt!r} does not contain {required}")
    return prompt


def check_subject_prompt(prompt: str) -> str:
    """Return a prompt that has {subject}. Raises ValueError."""
    return check_template(prompt, ("{subject}", "{class}"), required="{subject}")


def check_subject_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Return prompts that all have {subject}. Raises ValueError."""
    return tuple(map(check_subject_prompt, prompts))


def check_class_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Return prompts without {subject}. Raises ValueError."""
    return tuple(check_template(p, allowed=("{class}",)) for p in prompts)


def named_until(prompt: str, class_noun: str, identifier: str | None = None) -> int:
    """Count the characters of the filled prompt up to the end of the subject's first name.

    Where {subject} is missing, the first {class} counts; without both, 0.
    """
    for placeholder in ("{subject}", "{class}"):
        before, found, _ = prompt.partition(placeholder)
        if found:
            return len(fill_prompt(before + found, class_noun, identifier))
    return 0


def fill_prompt(prompt: str, class_noun: str, identifier: str | None = None) -> str:
    """Fill {subject} with '[identifier] [class noun]' and {class} with the class noun.

    Without an identifier (the untouched base), {subject} is the class noun. Before a class noun
    that begins with the sound of a vowel, "a" becomes "an"; before an identifier it stays. Without
    a class noun, {subject} is the identifier alone, and everything else is called a thing.
    """
    if class_noun == NO_NOUN:
        return fill_prompt(prompt.replace("{subject}", identifier or "{class}"), _ANYTHING)
    subject = f"{identifier} {class_noun}" if identifier else class_noun
    if _VOWEL_SOUND.match(class_noun):
        nouns = r"\{class\}" if identifier else r"\{(?:class|subject)\}"
        prompt = re.sub(rf"\b([Aa]) (?={nouns})", r"\1n ", prompt)
    return prompt.replace("{subject}", subject).replace("{class}", class_noun)


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun, by its sound."""
    return f"{'an' if _VOWEL_SOUND.match(noun) else 'a'} {noun}"


def has_an(prompt: str, class_noun: str) -> bool:
    """Return whether the filled prompt has "an" where the template has "a" before {class}."""
    if class_noun == NO_NOUN:
        return False
    return fill_prompt(prompt, class_noun, "x") != prompt.replace(
        "{subject}", f"x {class_noun}"
    ).replace("{class}", class_noun)
