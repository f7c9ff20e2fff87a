"""Identifiers: the rare tokens that name a subject to the base.

`rare` lists the tokens of a vocabulary that may name one, `drawing` gives each subject its
own, `findings` warns of those that users chose, and `meanings` knows words that mean something.
None of them knows registry or manifest: what is published already is an argument.

Source: Ruiz et al. 2022 (arXiv 2208.12242), section 3.2, "Rare-token Identifiers".
"""

from __future__ import annotations

from dbray.planning.identifiers.drawing import assign, fewest_tokens, normal_form
from dbray.planning.identifiers.findings import check_identifiers
from dbray.planning.identifiers.rare import (
    candidates,
    default_rank_range,
    is_large,
    unused,
    was_candidate,
)
from dbray.planning.identifiers.vocabulary import Vocabulary, as_read

__all__ = [
    "Vocabulary",
    "as_read",
    "assign",
    "candidates",
    "check_identifiers",
    "default_rank_range",
    "fewest_tokens",
    "is_large",
    "normal_form",
    "unused",
    "was_candidate",
]
