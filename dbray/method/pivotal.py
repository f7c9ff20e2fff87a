"""Pivotal tuning: low-rank factors and the embeddings of the identifier's tokens, together."""

from __future__ import annotations

from dbray.method.lora import METHOD

__all__ = ["METHOD"]
