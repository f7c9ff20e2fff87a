"""The bodies and headers of responses: images, events, models and predictions."""

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
from dbray.scores.flags import flags_of
from dbray.scores.values import Scores
from dbray.serving.http import answers
from dbray.serving.http.predictions import PredictionState
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import (
    BASE,
    Answer,
    Ask,
    Begun,
    Finished,
    Partial,
    Refusal,
    base_name,
)

IMAGES_PATH = "/v1/images/files"
_PRIVATE = {"cache-control": "private, max-age=3600"}


def dumped(
    body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with a JSON body."""
    text = body.model_dump_json(exclude_none=True)
    return Response(text, status, dict(headers or {}), media_type="application/json")


def refusal(refused: Refusal) -> Response:
    """An error."""
    headers = refused.headers()
    return Response(refused.encoded(), refused.status, headers, media_type="application/json")


def timing(begun: Begun) -> dict[str, str]:
    """Headers with the tier that had the weights, and the times of loading and waiting."""
    return {
        "x-dbray-cache": begun.source,
        "x-dbray-load-ms": f"{begun.load_ms:.2f}",
        "x-dbray-queue-ms": f"{begun.queue_ms:.2f}",
    }


def images(
    request: GenerationRequest, ask: Ask, answer: Answer, address: str = ""
) -> answers.ImagesResponse:
    """The body of an answer; `address` is the server's."""
    if request.response_format == "url":
        data = [
            answers.ImageData(url=f"{address}{IMAGES_PATH}/{name}", seed=seed)
            for seed, name in zip(ask.seeds, answer.names, strict=True)
        ]
    else:
        data = [
            answers.ImageData(b64_json=base64.b64encode(content).decode(), seed=seed)
            for seed, content in zip(ask.seeds, answer.images, strict=True)
        ]
    return answers.ImagesResponse(
        created=int(time.time()),
        model=ask.key,
        output_format=request.output_format,
        size=f"{answer.begun.width}x{answer.begun.height}",
        data=data,
    )


def image_file(name: str, content: bytes) -> Response:
    """An image from the shelf."""
    media_type = f"image/{name.rpartition('.')[2]}"
    return Response(content, media_type=media_type, headers=_PRIVATE)


def preview(name: str, content: bytes) -> Response:
    """One file of a model's previews."""
    media_type = "image/png" if name.endswith(".png") else "image/webp"
    return Response(content, media_type=media_type, headers=_PRIVATE)


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
        body["usage"] = answers.Usage().model_dump()
    else:
        body["partial_image_index"] = item.number
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"


def model(
    record: ModelRecord,
    previews: Sequence[str] = (),
    prompts: Sequence[str] = (),
    scores: Scores | None = None,
) -> answers.ModelObject:
    """A published model as OpenAI's object."""
    created = datetime.fromisoformat(record.created_at)
    return answers.ModelObject(
        id=record.id,
        created=int(created.timestamp()),
        owned_by=record.tenant or "dbray",
        dbray=answers.ModelDetails(
            revision=record.revision,
            class_noun=record.class_noun,
            identifier=record.identifier,
            base=base_name(record.base),
            trained_steps=record.steps,
            resolution=record.recipe.resolution,
            previews=list(previews),
            preview_prompts=list(prompts),
            scores=scores,
            flags=[answers.ModelFlag(**flag._asdict()) for flag in flags_of(scores)]
            if scores
            else None,
        ),
    )


def base_model(name: str | None) -> answers.ModelObject:
    """The untouched base as OpenAI's object."""
    details = answers.ModelDetails(
        revision=None,
        class_noun=None,
        identifier=None,
        base=base_name(name or ""),
        trained_steps=None,
        resolution=None,
        previews=[],
        scores=None,
        flags=None,
    )
    return answers.ModelObject(id=BASE, created=0, owned_by="dbray", dbray=details)


def prediction(name: str, state: PredictionState, address: str) -> answers.Prediction:
    """An asynchronous request as it stands."""
    result = state.result
    error = result.body()["error"] if isinstance(result, Refusal) else None
    output = None
    if isinstance(result, Answer):
        output = images(state.request, state.ask, result, address)
    return answers.Prediction(
        id=name,
        status=state.status,
        model=state.ask.key,
        created=state.created,
        output=output,
        error=answers.ErrorDetails.model_validate(error) if error else None,
    )
