"""Textual inversion: the embeddings of the identifier's tokens alone; all else stays frozen.

Source: Gal et al. 2022 (arXiv 2208.01618). Where they add tokens to the vocabulary, the subject's
rare tokens get rows of their own here: what the denoiser sees is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.resident import Layout, Weights
from dbray.errors import BaseError
from dbray.method.with_tokens import WithTokens
from dbray.spec.sections import Recipe


class TextualInversion(WithTokens):
    """See the module, and `dbray.method.methods.Method`."""

    def token_rate(self, recipe: Recipe) -> float:
        """The recipe's identifier_rate, else its learning rate."""
        return recipe.identifier_rate or recipe.learning_rate

    def prepare(self, backbone: Backbone, network: nn.Module, recipe: Recipe) -> None:
        """Nothing but the tokens."""

    def publish_own(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe
    ) -> dict[str, bytes]:
        """No files but that of the tokens."""
        return {}

    def read_own(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """No files but that of the tokens."""
        raise BaseError(f"not files of a textual inversion: {', '.join(sorted(contents))}")

    def num_own(self, base: Base, recipe: Recipe) -> int:
        """None."""
        return 0


METHOD = TextualInversion()
