"""Training of the embeddings of the identifier's tokens, alone or with other parameters.

Owns the embedding layer with separate rows for some tokens, their rate, their fixed norm, their
file `tokens.safetensors`, and how they are loaded. All other embeddings stay frozen. Without a
fixed norm, embeddings at useful rates grow until the subject is lost.

Source: Gal et al. 2022 (arXiv 2208.01618), textual inversion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dbray.bases import Backbone, Base, load_tokenizer
from dbray.bases.families.family import Family
from dbray.bases.resident import Changes, Layout, Target
from dbray.errors import BaseError, Diverged, TrainError
from dbray.method.factors import metadata_of
from dbray.spec.recipe import Recipe
from dbray.training.rates import Rate

FILE = "tokens.safetensors"
MAX_TOKENS = 8
"""Limit for the tokens of an identifier in one text encoder."""
_UNUSED = -1
_IDS, _LAYERS = "token_ids", "learnt_tokens"


class LearntTokens(nn.Embedding):
    """An embedding layer with separate rows for some tokens, in each of its slots."""

    token_ids: Tensor
    norm: Tensor

    def __init__(self, base: nn.Embedding, tokenizer: Any, num_slots: int) -> None:
        # "meta" allocates nothing: the weight is that of the resident layer.
        super().__init__(base.num_embeddings, base.embedding_dim, device="meta")
        self.weight, self.padding_idx = base.weight, base.padding_idx
        # Of its own, as under ZeRO 3 the weight is empty between two calls.
        self._table = base.weight.detach().to("cpu", torch.float32)
        self._tokenizer = tokenizer
        self.num_slots, size = num_slots, num_slots * MAX_TOKENS
        rows = torch.zeros(size, base.embedding_dim, device=base.weight.device)
        self.rows = nn.Parameter(rows)
        ids = torch.full((size,), _UNUSED, device=base.weight.device)
        self.register_buffer("token_ids", ids, persistent=False)
        norms = base.weight.detach().float().norm(dim=1)
        self.register_buffer("norm", norms.median(), persistent=False)
        self.slots_B: Tensor | None = None
        """The slot of each row of a batch; None: equal shares in slot order."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Embedding's own name
        """Look the tokens up, in their slot's separate rows if they have them."""
        found = super().forward(input)
        ids = self.token_ids.view(self.num_slots, MAX_TOKENS)
        rows = self.rows.view(self.num_slots, MAX_TOKENS, -1)
        if self.slots_B is not None:
            ids, rows = ids[self.slots_B], rows[self.slots_B]
        tokens, grouped = input.reshape(len(ids), -1), found.view(len(ids), -1, found.shape[-1])
        for index in range(MAX_TOKENS):
            is_learnt = tokens == ids[:, index, None]
            row = rows[:, index, None].to(found.dtype)
            grouped = torch.where(is_learnt.unsqueeze(-1), row, grouped)
        return grouped.view(found.shape)

    @torch.no_grad()
    def begin(self, identifier: str, slot: int) -> Tensor:
        """Give an identifier's tokens separate rows in a slot; return the initial rows.

        Raises:
            TrainError: it has more tokens than can be learnt.
        """
        token_ids = list(dict.fromkeys(_encode(self._tokenizer, identifier)))
        if len(token_ids) > MAX_TOKENS:
            raise TrainError(f"the identifier {identifier!r} has {len(token_ids)} tokens; at most "
                             f"{MAX_TOKENS} can be learnt: choose a shorter one")  # fmt: skip
        rows = torch.zeros(MAX_TOKENS, self.embedding_dim, device=self.norm.device)
        ids = self.token_ids.view(self.num_slots, MAX_TOKENS)[slot]
        ids.fill_(_UNUSED)
        for index, token_id in enumerate(token_ids):
            ids[index] = token_id
            rows[index] = self._table[token_id]
        return self.held(rows)

    def learnt(self, slot: int) -> list[int]:
        """Return the tokens that have separate rows in a slot, in the order of the rows."""
        ids = self.token_ids.view(self.num_slots, MAX_TOKENS)[slot]
        return [int(token_id) for token_id in ids if token_id != _UNUSED]

    @torch.no_grad()
    def held(self, rows: Tensor) -> Tensor:
        """Scale rows to the median norm of the table; unused rows stay 0."""
        norms = rows.norm(dim=1, keepdim=True)
        return torch.where(norms > 0, rows * (self.norm / norms.clamp(min=1e-12)), rows)


def inject(backbone: Backbone, num_slots: int) -> None:
    """Make the text encoders of a backbone learn tokens, where their family can."""
    family = backbone.base.family
    for part in family.encoders_to_teach:
        encoder: Any = backbone.models[part]
        tokenizer = backbone.tokenizers[_tokenizer_names(family)[part]]
        learnt = LearntTokens(encoder.get_input_embeddings(), tokenizer, num_slots)
        encoder.set_input_embeddings(learnt)


def layers(network: nn.Module) -> dict[str, LearntTokens]:
    """Return the embedding layers of a network that learn tokens, by path.

    The modules are searched once, after `inject`: every step needs these layers.
    """
    if _LAYERS not in network.__dict__:
        found = {p: one for p, one in network.named_modules() if isinstance(one, LearntTokens)}
        network.__dict__[_LAYERS] = found
    return network.__dict__[_LAYERS]


def rates(network: nn.Module, start: float, recipe: Recipe) -> dict[str, Rate]:
    """Return the rate of the rows: it falls to 0, without weight decay."""
    schedule = "cosine" if recipe.rate_schedule == "cosine" else "linear"
    return {f"{path}.rows": Rate(start, schedule) for path in layers(network)}


def begin(network: nn.Module, identifier: str, slot: int) -> dict[str, Tensor]:
    """Choose the tokens of a slot's subject; return the initial values of its rows, by name.

    Raises:
        TrainError: the identifier has more tokens than can be learnt.
    """
    learnt = layers(network)
    return {f"{path}.rows": layer.begin(identifier, slot) for path, layer in learnt.items()}


def sequences(base: Base, identifier: str) -> dict[str, list[int]]:
    """Return the token ids of an identifier, by text encoder."""
    names = _tokenizer_names(base.family)
    return {part: _encode(load_tokenizer(base, name), identifier) for part, name in names.items()}


def _tokenizer_names(family: Family) -> dict[str, str]:
    """Return the name of each text encoder's tokenizer."""
    return dict(zip(family.text_encoders, family.tokenizers, strict=False))


def _encode(tokenizer: Any, identifier: str) -> list[int]:
    return tokenizer.encode(identifier, add_special_tokens=False)


def publish(network: nn.Module, weights: Mapping[str, Tensor], slot: int) -> dict[str, bytes]:
    """Make the file of a slot's learnt rows, in float32: a few kilobytes."""
    tensors, ids = {}, {}
    for path, layer in layers(network).items():
        part = path.partition(".")[0]
        used = layer.learnt(slot)
        tensors[part] = weights[f"{path}.rows"][: len(used)].float().contiguous()
        ids[part] = used
        if not tensors[part].isfinite().all():
            raise Diverged("the learnt embeddings are not finite; lower identifier_rate")
    # One entry only: safetensors writes several in a random order.
    return {FILE: save(tensors, {_IDS: json.dumps(ids, sort_keys=True)})} if tensors else {}


@dataclass(frozen=True)
class Rows:
    """Learnt embeddings in memory: by part, token ids and their rows."""

    rows: Mapping[str, tuple[tuple[int, ...], Tensor]]
    names: Mapping[str, str]
    """The embedding table of each part."""
    own_tables: frozenset[str] = frozenset()
    """Parts whose whole table the model replaces, before the rows are written."""

    @property
    def size_bytes(self) -> int:
        """See Weights."""
        return sum(rows.nbytes for _, rows in self.rows.values())

    @property
    def prepared_bytes(self) -> int:
        """See Weights."""
        return self.size_bytes

    @property
    def changes(self) -> Changes:
        """The embedding tables."""
        return {part: frozenset([self.names[part]]) for part in self.rows}

    def prepare(self, device: torch.device) -> Rows:
        """Copy to the device."""
        rows = {part: (ids, rows.to(device)) for part, (ids, rows) in self.rows.items()}
        return Rows(rows, self.names, self.own_tables)

    @torch.no_grad()
    def write(self, resident: Target) -> None:
        """Write the rows into the base's table."""
        for part, (ids, rows) in self.rows.items():
            live, base = resident.tensor(part, self.names[part])
            if part not in self.own_tables:
                live.copy_(base)
            live[list(ids)] = rows.to(live.device, live.dtype)


def read(content: Tensor, layouts: Mapping[str, Layout], written: Changes | None = None) -> Rows:
    """Read the file of learnt rows.

    `written` is what the model's other files write before the rows: its own tables are kept.

    Raises:
        BaseError: it does not fit the base.
    """
    names, own_tables, rows = {}, set(), _parse(content.numpy().tobytes())
    for part, (ids, tensor) in rows.items():
        names[part] = table = _table_of(part, layouts)
        num_tokens, width = layouts[part][table]
        if tensor.shape != (len(ids), width) or not all(0 <= one < num_tokens for one in ids):
            raise BaseError(f"{FILE}: the embeddings of {part} do not fit the base")
        others = (written or {}).get(part, frozenset())
        if others is None or table in others:
            own_tables.add(part)
    return Rows(rows, names, frozenset(own_tables))


def read_file(file: Path) -> dict[str, tuple[tuple[int, ...], Tensor]]:
    """Read the token ids and rows of each text encoder. Raises BaseError."""
    return _parse(file.read_bytes())


def _parse(data: bytes) -> dict[str, tuple[tuple[int, ...], Tensor]]:
    try:
        tensors = load(data)
        ids = json.loads(metadata_of(data)[_IDS])
        return {part: (tuple(map(int, ids[part])), tensor) for part, tensor in tensors.items()}
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise BaseError(f"{FILE} cannot be read: {exc!r}") from exc


def _table_of(part: str, layouts: Mapping[str, Layout]) -> str:
    ends = ("token_embedding.weight", "embed_tokens.weight", "shared.weight")
    for name in layouts.get(part, {}):
        if name.endswith(ends):
            return name
    raise BaseError(f"{FILE}: the base has no embeddings {part!r}")
