"""The common part of all methods: any recipe may also train the identifier's tokens.

A method defines what else it trains, publishes and reads; this class adds the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.condition import Condition
from dbray.bases.resident import Changes, Layout, Target, Weights
from dbray.method import tokens
from dbray.spec.recipe import Recipe
from dbray.training.engine import Engine
from dbray.training.rates import Rate


class WithTokens:
    """Implements `dbray.method.methods.Method`, except for what the subclass itself trains."""

    def token_rate(self, recipe: Recipe) -> float | None:
        """Return the rate of the identifier's embeddings; None if they are not trained."""
        return recipe.identifier_rate

    def prepare(
        self, backbone: Backbone, network: nn.Module, recipe: Recipe, num_slots: int
    ) -> None:
        """Make the trained parameters of a frozen network require gradients."""
        raise NotImplementedError

    def publish_own(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe
    ) -> dict[str, bytes]:
        """Make the files of what the method itself trains."""
        raise NotImplementedError

    def read_own(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """Read the files of what the method itself trains."""
        raise NotImplementedError

    def num_own(self, base: Base, recipe: Recipe) -> int:
        """Number of parameters that the method itself trains."""
        raise NotImplementedError

    def network(self, backbone: Backbone, recipe: Recipe, num_slots: int = 1) -> nn.Module:
        """See Method."""
        parts = self._parts(backbone.base, recipe)
        network = backbone.network(parts).requires_grad_(False)
        self.prepare(backbone, network, recipe, num_slots)
        if self.token_rate(recipe):
            tokens.inject(backbone, num_slots)
        return network

    def assign(self, network: nn.Module, rows_B: Tensor | None) -> None:
        """See Method."""
        for layer in tokens.layers(network).values():
            layer.slots_B = rows_B

    def rates(self, network: nn.Module, recipe: Recipe) -> Mapping[str, Rate]:
        """See Method."""
        rate = self.token_rate(recipe)
        return tokens.rates(network, rate, recipe) if rate else {}

    def condition(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str]) -> Condition:
        """Return token ids if text encoders are part of a step, else the base's embeddings."""
        return (backbone.tokenize if self._embeds(recipe) else backbone.condition)(prompts)

    def begin(self, network: nn.Module, identifier: str, slot: int = 0) -> Mapping[str, Tensor]:
        """See Method."""
        return tokens.begin(network, identifier, slot)

    def after_step(self, engine: Engine) -> None:
        """Scale the learnt embeddings to the table's norm."""
        rows = tokens.layers(engine.module)
        if rows:
            engine.assign({
                f"{path}.rows": layer.held(engine.current(f"{path}.rows"))
                for path, layer in rows.items()
            })  # fmt: skip

    def publish(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe, slot: int = 0
    ) -> dict[str, bytes]:
        """See Method."""
        learnt = {f"{path}.rows" for path in tokens.layers(network)}
        own = {name: value for name, value in weights.items() if name not in learnt}
        return self.publish_own(network, own, recipe) | tokens.publish(network, weights, slot)

    def read(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """See Method."""
        own = {name: content for name, content in contents.items() if name != tokens.FILE}
        found = [self.read_own(own, layouts)] if own else []
        if tokens.FILE in contents:
            written = found[0].changes if found else {}
            found.append(tokens.read(contents[tokens.FILE], layouts, written))
        return found[0] if len(found) == 1 else Together(tuple(found))

    def num_trained(self, base: Base, recipe: Recipe) -> int:
        """See Method; the embeddings of an identifier are too few to count."""
        return self.num_own(base, recipe)

    def num_frozen(self, base: Base, recipe: Recipe) -> int:
        """See Method; for one whose trained parameters are beside those of the base."""
        return sum(base.num_parameters(part) for part in self._parts(base, recipe))

    def published_bytes(self, base: Base, recipe: Recipe) -> int:
        """See Method."""
        return self.num_own(base, recipe) * (2 if recipe.publish_precision == "fp16" else 4)

    def about(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """See Method."""
        return {}

    def _parts(self, base: Base, recipe: Recipe) -> tuple[str, ...]:
        """The models that a step computes with."""
        encoders = base.family.text_encoders if self._embeds(recipe) else ()
        return (base.family.denoiser, *encoders)

    def _embeds(self, recipe: Recipe) -> bool:
        """Return whether a step computes with the text encoders."""
        return recipe.train_text_encoder or bool(self.token_rate(recipe))


@dataclass(frozen=True)
class Together:
    """Several kinds of weights of one model, written one after the other."""

    kinds: tuple[Weights, ...]

    @property
    def size_bytes(self) -> int:
        """See Weights."""
        return sum(one.size_bytes for one in self.kinds)

    @property
    def prepared_bytes(self) -> int:
        """See Weights."""
        return sum(one.prepared_bytes for one in self.kinds)

    @property
    def changes(self) -> Changes:
        """Everything that any of them writes."""
        found: dict[str, frozenset[str] | None] = {}
        for one in self.kinds:
            for part, names in one.changes.items():
                before = found.get(part, frozenset())
                found[part] = None if names is None or before is None else before | names
        return found

    def prepare(self, device: torch.device) -> Together:
        """See Weights."""
        return Together(tuple(one.prepare(device) for one in self.kinds))

    def write(self, resident: Target) -> None:
        """See Weights."""
        for one in self.kinds:
            one.write(resident)


def kinds_of(weights: Weights) -> tuple[Weights, ...]:
    """Return the kinds of weights that a model consists of."""
    return weights.kinds if isinstance(weights, Together) else (weights,)


def trained_parts(base: Base, recipe: Recipe) -> tuple[str, ...]:
    """Return the denoiser and, if requested, the text encoders."""
    encoders = base.family.encoders_to_train if recipe.train_text_encoder else ()
    return (base.family.denoiser, *encoders)
