"""Textual inversion: only the embeddings of the identifier's tokens are trained.

Source: Gal et al. 2022 (arXiv 2208.01618). They add tokens to the vocabulary; here the subject's
rare tokens get rows of their own: the denoiser's input is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.resident import Layout, Weights
from dbray.errors import BaseError
from dbray.method.with_tokens import WithTokens
from dbray.spec.recipe import Recipe


class TextualInversion(WithTokens):
    """See the module, and `dbray.method.methods.Method`."""

    def token_rate(self, recipe: Recipe) -> float:
        """The recipe's identifier_rate, else its learning rate."""
        return recipe.identifier_rate or recipe.learning_rate

    def prepare(
        self, backbone: Backbone, network: nn.Module, recipe: Recipe, num_slots: int
    ) -> None:
        """Only the tokens."""

    def publish_own(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe
    ) -> dict[str, bytes]:
        """Only the file of the tokens."""
        return {}

    def read_own(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """Only the file of the tokens."""
        raise BaseError(f"not files of a textual inversion: {', '.join(sorted(contents))}")

    def num_own(self, base: Base, recipe: Recipe) -> int:
        """None."""
        return 0


METHOD = TextualInversion()
