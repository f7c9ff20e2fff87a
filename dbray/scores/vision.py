"""CLIP, DINO and DINOv2 in memory, loaded by transformers from safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dbray.errors import BaseError
from dbray.scores.embedders import KINDS, Embedder

_AT_ONCE = 32
"""Images or texts in one forward pass."""


class VisionEmbedder:
    """See `dbray.scores.embedders.LoadedEmbedder`."""

    def __init__(self, embedder: Embedder, device: str = "cpu") -> None:
        import transformers

        self._embedder, self._device = embedder, device
        folder = embedder.folder
        try:
            model_class = getattr(transformers, KINDS[embedder.kind])
            # DINO's checkpoints have no pooling layer, and embeddings do not need it.
            options = {"add_pooling_layer": False} if embedder.kind == "vit" else {}
            loaded, found = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, backend="pil"
            )
            self._tokenizer: Any = (
                transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
                if embedder.reads_text
                else None
            )
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BaseError(
                f"embedder {embedder.name!r}: {folder} cannot be loaded: {exc}"
            ) from exc
        # transformers fills missing tensors with random numbers.
        if missing := found["missing_keys"]:
            raise BaseError(f"embedder {embedder.name!r} has no tensor {min(missing)!r}")
        self._model: Any = loaded.to(device, torch.float32).eval().requires_grad_(False)

    @property
    def scale(self) -> float:
        """See LoadedEmbedder."""
        return float(self._model.logit_scale.exp()) if self._embedder.reads_text else 1.0

    @torch.no_grad()
    def images(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """See LoadedEmbedder."""
        rows = []
        for start in range(0, len(pixels), _AT_ONCE):
            batch = [np.asarray(image) for image in pixels[start : start + _AT_ONCE]]
            values = self._processor(images=batch, return_tensors="pt")["pixel_values"]
            rows.append(self._of_images(values.to(self._device)).float().cpu())
        return normalize(torch.cat(rows), dim=1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """See LoadedEmbedder."""
        if self._tokenizer is None:
            raise BaseError(f"embedder {self._embedder.name!r} reads no text; name a CLIP")
        rows = []
        for start in range(0, len(prompts), _AT_ONCE):
            tokens = self._tokenizer(
                list(prompts[start : start + _AT_ONCE]),
                padding="max_length", truncation=True, return_tensors="pt",
            ).to(self._device)  # fmt: skip
            found = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            rows.append(_features(found).float().cpu())
        return normalize(torch.cat(rows), dim=1)

    def _of_images(self, values: Tensor) -> Tensor:
        if self._embedder.reads_text:
            return _features(self._model.get_image_features(pixel_values=values))
        # The first token, as DINO's and DINOv2's makers compare images.
        return self._model(pixel_values=values).last_hidden_state[:, 0]


def _features(found: Any) -> Tensor:
    """Return the projected features, which transformers 5 returns inside an output."""
    return found if isinstance(found, Tensor) else found.pooler_output
