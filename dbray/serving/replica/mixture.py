"""A batch of several models: each model's prompts are encoded by its own text encoders.

A model may change text encoders (learnt embeddings, low-rank factors). They are small beside a
denoiser, and used once per image, so they are written into the resident weights one model after the
other. A model for which that fails is refused alone.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from dbray.bases import Backbone
from dbray.bases.condition import Condition
from dbray.bases.generate import encode
from dbray.method.mixing import Member
from dbray.serving.replica.fair_queue import Batch, Request
from dbray.serving.replica.weights import load_refusal


def encode_each(backbone: Backbone, batch: Batch) -> tuple[Batch, Condition | None]:
    """Encode the prompts of a batch; refuse the requests whose model fails.

    Returns the images that remain, and their condition as `bases.generate.sample` takes it. The
    resident weights are those of the base then.
    """
    found: dict[int, list[Condition]] = {}
    for positions in _by_text(batch).values():
        requests = [batch[position][0] for position in positions]
        try:
            rows = _rows(backbone, requests)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as exc:  # noqa: BLE001 - the other models of the batch may be served
            refusal = load_refusal(exc, requests[0].ask.key)
            for request in requests:
                request.refuse(refusal)
        else:
            found |= dict(zip(positions, rows, strict=True))
    backbone.resident.put(None)
    kept = sorted(found)
    if not kept:
        return [], None
    passes = range(len(found[kept[0]]))
    stacked = Condition.stack([found[position][one] for one in passes for position in kept])
    return [batch[position] for position in kept], stacked


def part_of(request: Request) -> Member:
    """Return a request's part of a mixed batch."""
    assert request.member is not None
    return request.member


def _by_text(batch: Batch) -> dict[str, list[int]]:
    """Return the positions of the images by what encodes their prompts: a model, or the base."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, (request, _) in enumerate(batch):
        groups[request.ask.key if part_of(request).text else ""].append(position)
    return groups


def _rows(backbone: Backbone, requests: list[Request]) -> list[list[Condition]]:
    """Return each image's rows: of its prompt and, if guidance needs it, of its negative one."""
    backbone.resident.put(part_of(requests[0]).text)
    prompts, num = [request.ask.prompt for request in requests], len(requests)
    condition = encode(backbone, prompts, requests[0].sampling)
    return [[condition[row] for row in range(i, len(condition), num)] for i in range(num)]
