"""Prompts with placeholders: {subject} is '[identifier] [class noun]', {class} the class noun."""

from __future__ import annotations


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

    Without an identifier (the untouched base), {subject} is the class noun.
    """
    subject = f"{identifier} {class_noun}" if identifier else class_noun
    return prompt.replace("{subject}", subject).replace("{class}", class_noun)
