"""What the routes send: images, events, models and predictions, from what the service has."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel

from dbray.records.models import ModelRecord
from dbray.serving.http import wire
from dbray.serving.http.predictions import Outcome
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import (
    BASE,
    Answer,
    Ask,
    Begun,
    Finished,
    OutputFormat,
    Partial,
    Refusal,
    base_name,
)

_MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
}


def dumped(
    body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A body as JSON."""
    text = body.model_dump_json(exclude_none=True)
    return Response(text, status, dict(headers or {}), media_type="application/json")


def timing(begun: Begun) -> dict[str, str]:
    """Headers that say where the weights were and what the request waited for."""
    return {
        "x-dbray-cache": begun.source,
        "x-dbray-load-ms": f"{begun.load_ms:.2f}",
        "x-dbray-queue-ms": f"{begun.queue_ms:.2f}",
    }


def images(request: GenerationRequest, ask: Ask, answer: Answer) -> wire.ImagesResponse:
    """The body of an answer."""
    data = [
        _image(request, seed, content)
        for seed, content in zip(ask.seeds, answer.images, strict=True)
    ]
    return wire.ImagesResponse(
        created=int(time.time()),
        model=ask.key,
        output_format=request.output_format,
        size=f"{answer.begun.width}x{answer.begun.height}",
        data=data,
    )


def _image(request: GenerationRequest, seed: int, content: bytes) -> wire.ImageData:
    text = base64.b64encode(content).decode()
    if request.response_format == "url":
        media_type = _MEDIA_TYPES[request.output_format]
        return wire.ImageData(url=f"data:{media_type};base64,{text}", seed=seed)
    return wire.ImageData(b64_json=text, seed=seed)


def event(
    item: Partial | Finished | Refusal, request: GenerationRequest, ask: Ask, begun: Begun
) -> str:
    """One server-sent event, with OpenAI's names. `index` and `seed` are dbray's."""
    if isinstance(item, Refusal):
        return f"event: error\ndata: {json.dumps(item.body())}\n\n"
    kind = "partial_image" if isinstance(item, Partial) else "completed"
    body: dict[str, Any] = {
        "type": f"image_generation.{kind}",
        "b64_json": base64.b64encode(item.data).decode(),
        "created_at": int(time.time()),
        "size": f"{begun.width}x{begun.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": request.output_format,
        "index": item.index,
        "seed": ask.seeds[item.index],
    }
    if isinstance(item, Finished):
        body["usage"] = wire.Usage().model_dump()
    else:
        body["partial_image_index"] = item.number
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"


def model(
    record: ModelRecord, previews: Sequence[str] = (), prompts: Sequence[str] = ()
) -> wire.ModelObject:
    """A published model as OpenAI's object."""
    created = datetime.fromisoformat(record.created_at)
    return wire.ModelObject(
        id=record.id,
        created=int(created.timestamp()),
        owned_by=record.tenant or "dbray",
        dbray=wire.ModelDetails(
            revision=record.revision,
            class_noun=record.class_noun,
            identifier=record.identifier,
            base=base_name(record.base),
            trained_steps=record.steps,
            resolution=record.recipe.resolution,
            previews=list(previews),
            preview_prompts=list(prompts),
        ),
    )


def base_model(name: str | None) -> wire.ModelObject:
    """The untouched base as OpenAI's object."""
    details = wire.ModelDetails(
        revision=None,
        class_noun=None,
        identifier=None,
        base=base_name(name or ""),
        trained_steps=None,
        resolution=None,
        previews=[],
    )
    return wire.ModelObject(id=BASE, created=0, owned_by="dbray", dbray=details)


def prediction(name: str, outcome: Outcome) -> wire.Prediction:
    """An asynchronous request as it stands."""
    result = outcome.result
    return wire.Prediction(
        id=name,
        status=outcome.status,
        model=outcome.ask.key,
        created=outcome.created,
        output=images(outcome.request, outcome.ask, result) if isinstance(result, Answer) else None,
        error=result.body()["error"] if isinstance(result, Refusal) else None,
    )
