"""The HTTP contract of dbray.serving, with the real openai client, server and replica.

Everything except Ray: see test_serving.py.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import statistics
import time
from pathlib import Path

import httpx
import openai
import pytest
from kit.server import Server
from kit.serving import add_previews, publish

from dbray.bases.families.stable_diffusion import StableDiffusion
from dbray.serving.http.access.places import Bodies, Places
from dbray.serving.messages import Refusal
from dbray.subjects.images import decode_png

pytestmark = pytest.mark.timeout(120)

PROMPT = "a photo of {subject} on the beach"
SECRET = "zebra-in-a-secret-prompt"


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_base):
    storage = tmp_path_factory.mktemp("registry")
    add_previews(storage, publish(storage, tiny_base, "rex", 1))
    publish(storage, tiny_base, "acmes", 2, tenant="acme")
    publish(storage, tiny_base, "zetas", 3, tenant="zeta")
    server = Server(storage, tiny_base, tmp_path_factory.mktemp("keys"))
    yield server
    server.close()


def pixels(image):
    return decode_png(base64.b64decode(image.b64_json))


def test_the_client_gets_images(server):
    raw = server.openai().images.with_raw_response.generate(
        model="rex", prompt=PROMPT, n=2, extra_body={"seed": 7, "num_inference_steps": 3}
    )
    answer = raw.parse()
    assert [pixels(image).shape for image in answer.data] == [(32, 32, 3)] * 2
    assert [image.seed for image in answer.data] == [7, 8]
    assert (answer.size, answer.output_format) == ("32x32", "png")
    assert raw.headers["x-dbray-cache"] in ("disk", "device", "resident")
    assert float(raw.headers["x-dbray-load-ms"]) >= 0
    assert float(raw.headers["x-dbray-queue-ms"]) >= 0
    assert raw.headers["x-request-id"]
    assert raw.headers["x-dbray-model"].startswith("rex@")
    assert "x-dbray-warning" not in raw.headers


def test_every_parameter_reaches_the_sampler(server):
    client = server.openai()

    def sample(**changes):
        body = {"seed": 7, "num_inference_steps": 3} | changes
        return client.images.generate(model="rex", prompt=PROMPT, extra_body=body).data[0].b64_json

    plain = sample()
    assert sample() == plain
    for changes in ({"seed": 8}, {"num_inference_steps": 4}, {"guidance_scale": 2.0},
                    {"negative_prompt": "dog"}, {"scheduler": "euler_ancestral"}):  # fmt: skip
        assert sample(**changes) != plain, changes


def test_the_subject_is_filled_in_and_a_prompt_without_it_warned_about(server):
    with server.http() as client:

        def post(**body):
            return client.post("/v1/images/generations", json={
                "seed": 1, "num_inference_steps": 2, "model": "rex"} | body)  # fmt: skip

        filled, written = post(prompt="a photo of {subject}"), post(prompt="a photo of zx dog")
        assert filled.json()["data"] == written.json()["data"]
        assert "x-dbray-warning" not in written.headers
        warned = post(prompt="a photo of a dog")
        assert warned.status_code == 200
        assert "names neither" in warned.headers["x-dbray-warning"]
        base = post(model="base", prompt="a photo of a dog")
        assert base.json()["data"] != warned.json()["data"]
        assert post(model="base", prompt=PROMPT).status_code == 400


def test_streaming_with_partial_images(server):
    stream = server.openai().images.generate(
        model="rex", prompt=PROMPT, stream=True, partial_images=2,
        extra_body={"seed": 7, "num_inference_steps": 6},
    )  # fmt: skip
    events = list(stream)
    assert [event.type.split(".")[1] for event in events] == ["partial_image"] * 2 + ["completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    whole = server.openai().images.generate(
        model="rex", prompt=PROMPT, extra_body={"seed": 7, "num_inference_steps": 6}
    )
    assert events[-1].b64_json == whole.data[0].b64_json
    assert events[-1].usage.total_tokens == 0


def test_a_rejected_stream_has_a_status(server):
    with pytest.raises(openai.NotFoundError):
        server.openai().images.generate(model="nobody", prompt="p", stream=True)
    with pytest.raises(openai.BadRequestError, match="size"):
        server.openai().images.generate(
            model="rex", prompt="p", size="8x8", stream=True, extra_body={"strict_size": True}
        )


def test_an_image_url_is_on_this_server_and_ends_with_its_model(server):
    publish(server.storage, server.base, "linked", 8, tenant="acme")
    body = {"seed": 7, "num_inference_steps": 1}
    client = server.openai()
    image = client.images.generate(
        model="linked", prompt=PROMPT, output_format="webp", response_format="url", extra_body=body
    ).data[0]
    assert image.url.startswith(f"{server.url}/v1/images/files/")
    answer = httpx.get(image.url)  # without a key
    assert answer.headers["content-type"] == "image/webp"
    plain = client.images.generate(
        model="linked", prompt=PROMPT, output_format="webp", extra_body=body
    )
    assert answer.content == base64.b64decode(plain.data[0].b64_json)
    client.models.delete("linked")
    assert httpx.get(image.url).json()["error"]["code"] == "image_not_found"


def test_a_prediction_can_have_urls(server):
    body = {"model": "rex", "prompt": PROMPT, "response_format": "url", "num_inference_steps": 1}
    with server.http() as client:
        client.put("/v1/predictions/linked", json=body)
        while (now := client.get("/v1/predictions/linked").json())["status"] == "processing":
            time.sleep(0.01)
        assert client.get(now["output"]["data"][0]["url"]).content.startswith(b"\x89PNG")


def test_an_unsupported_size_becomes_the_nearest_supported_one(server):
    with server.http() as client:

        def post(**body):
            usual = {"seed": 1, "num_inference_steps": 1, "model": "rex", "prompt": PROMPT}
            return client.post("/v1/images/generations", json=usual | body)

        answer = post(size="1792x1024")
        assert answer.json()["size"] == "64x36"
        warning = answer.headers["x-dbray-warning"]
        assert warning == "drawn as 64x36: the base cannot draw 1792x1024"
        exact = post(size="64x36")
        assert exact.json()["data"] == answer.json()["data"]
        assert "x-dbray-warning" not in exact.headers
        assert post(size="1792x1024", strict_size=True).json()["error"]["param"] == "size"


def test_a_cut_off_prompt_gives_a_warning_without_its_words(server):
    long = " on the beach in the photo of the clock on the beach in the clock"
    with server.http() as client:

        def warning(prompt, **body):
            usual = {"seed": 1, "num_inference_steps": 1, "model": "rex", "prompt": prompt}
            answer = client.post("/v1/images/generations", json=usual | body)
            assert answer.status_code == 200
            return answer.headers.get("x-dbray-warning", "")

        cut = warning("a {subject}" + long)
        assert "the base reads the first " in cut
        assert "characters of prompt" in cut
        assert "clock" not in cut
        assert "subject is named" not in cut
        assert "the subject is named in what is not read" in warning(long + " {subject}")
        assert "characters of negative_prompt" in warning(PROMPT, negative_prompt=long)
        assert "characters of prompt" in warning("a dog" + long, model="base")


def test_openai_fields_without_effect_are_reported(server):
    raw = server.openai().images.with_raw_response.generate(
        model="rex", prompt=PROMPT, quality="hd", style="vivid", moderation="low", size="32x32",
        background="transparent", user=None,
        extra_body={"num_inference_steps": 1, "input_fidelity": "high", "seed": None, "n": None},
    )  # fmt: skip
    assert raw.parse().data
    assert raw.headers["x-dbray-warning"] == (
        "without effect here: quality, background, moderation, style, input_fidelity"
    )


def test_unsupported_openai_features_are_errors(server):
    client = server.openai(max_retries=0)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="rex", messages=[{"role": "user", "content": "p"}])
    assert caught.value.code == "not_offered"
    with pytest.raises(openai.NotFoundError) as caught:  # larger than any body that is read
        client.images.edit(model="rex", prompt="p", image=b"x" * 2**20)
    assert caught.value.code == "not_offered"
    with server.http() as http:
        assert http.get("/nothing").json()["error"]["code"] == "not_found"


def test_models_are_listed_and_retrieved(server):
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["base", "acmes", "rex"]
    rex = client.models.retrieve("rex")
    assert (rex.object, rex.dbray["class_noun"], rex.dbray["identifier"]) == ("model", "dog", "zx")
    assert rex.dbray["previews"] == ["0.png", "base-0.png", "photo-0.webp", "photo-1.webp"]
    assert rex.dbray["preview_prompts"] == ["a photo of {subject} on the beach"]
    assert client.models.retrieve(f"rex@{rex.dbray['revision']}").id == "rex"
    with server.http() as http:
        assert http.get("/v1/models/rex/previews/photo-0.webp").content.startswith(b"RIFF")
        for name in ("previews.json", "9.png", "..%2fmodel.json"):
            assert http.get(f"/v1/models/rex/previews/{name}").status_code == 404
        page = http.get("/v1/models", params={"limit": 1, "after": "acmes"}).json()
        assert ([model["id"] for model in page["data"]], page["has_more"]) == (["rex"], False)


def test_errors_become_classes_of_the_openai_client(server):
    def raises(error, name="acme", **body):
        with pytest.raises(error) as caught:
            server.openai(name, max_retries=0).images.generate(**{"prompt": "p"} | body)
        return caught.value

    assert raises(openai.AuthenticationError, "wrong-key").code == "invalid_api_key"
    assert raises(openai.NotFoundError, model="nobody").code == "model_not_found"
    assert raises(openai.BadRequestError, model="rex", n=11).param == "n"
    assert raises(openai.BadRequestError, extra_body={"colour": 1}).param == "colour"
    assert raises(openai.BadRequestError, size="100000x100000").param == "size"
    steps = {"num_inference_steps": 999}
    assert raises(openai.BadRequestError, extra_body=steps).param == "num_inference_steps"
    with pytest.raises(openai.PermissionDeniedError):
        server.openai("zeta").models.delete("zetas")


def test_the_client_retries_temporary_errors(server, monkeypatch):
    real, calls = server.replica.generate, []

    async def busy_once(ask):
        calls.append(ask)
        if len(calls) == 1:
            return Refusal(503, "overloaded", "busy", retry_after=1)
        return await real(ask)

    monkeypatch.setattr(server.replica, "generate", busy_once)
    body = {"num_inference_steps": 1}
    assert server.openai().images.generate(model="rex", prompt="p", extra_body=body).data
    assert len(calls) == 2
    calls.clear()

    async def damaged(ask):
        calls.append(ask)
        return Refusal(500, "model_unusable", "damaged")

    monkeypatch.setattr(server.replica, "generate", damaged)
    with pytest.raises(openai.InternalServerError):
        server.openai().images.generate(model="rex", prompt="p", extra_body=body)
    assert len(calls) == 1


def test_the_rate_of_a_tenant_is_limited(server):
    client = server.openai("zeta", max_retries=0)
    body = {"num_inference_steps": 1}

    def ask_often():
        for _ in range(20):
            client.images.generate(model="base", prompt="p", n=10, extra_body=body)

    with pytest.raises(openai.RateLimitError) as caught:
        ask_often()
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert server.openai("acme").images.generate(model="base", prompt="p", extra_body=body).data


def test_another_tenants_subject_looks_like_an_unknown_one(server):
    calls = (
        ("GET", "/v1/models/{}", None), ("POST", "/v1/models/{}:warm", None),
        ("GET", "/v1/models/{}/previews/0.png", None), ("DELETE", "/v1/models/{}", None),
        ("POST", "/v1/images/generations", "{}"),
    )  # fmt: skip
    with server.http() as client:
        for method, path, model in calls:
            answers = []
            for name in ("zetas", "never"):
                body = {"model": name, "prompt": "p"} if model else None
                response = client.request(method, path.format(name), json=body)
                headers = dict(response.headers)
                del headers["x-request-id"], headers["date"]
                headers.pop("content-length")
                answers.append((response.status_code, response.text.replace(name, "X"), headers))
            assert answers[0] == answers[1], path
            assert answers[0][0] == 404
        seconds = {"zetas": [], "never": []}
        for _ in range(15):
            for name, times in seconds.items():
                started = time.perf_counter()
                client.get(f"/v1/models/{name}")
                times.append(time.perf_counter() - started)
    medians = [statistics.median(times) for times in seconds.values()]
    assert min(medians) > 0.045  # both wait for the same tick
    assert [model.id for model in server.openai("zeta").models.list()] == ["base", "rex", "zetas"]


def test_scopes_allow_metrics_and_takedown(server):
    with server.http() as client:
        assert client.get("/metrics").status_code == 403
        assert client.delete("/v1/models/rex").status_code == 403  # everybody's
    with server.http(None) as client:
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/playground"):
            assert client.get(path).status_code == 200, path
        for path in ("/metrics", "/v1/models", "/v1/models/rex", "/v1/predictions/x"):
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "missing_api_key"


def test_a_takedown_is_immediate(server):
    publish(server.storage, server.base, "doomed", 9, tenant="acme")
    client = server.openai("acme", max_retries=0)
    body = {"num_inference_steps": 1}
    assert client.images.generate(model="doomed", prompt="p", extra_body=body).data
    assert client.models.delete("doomed").deleted
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="doomed", prompt="p", extra_body=body)
    assert not Path(server.storage, "models", "doomed").exists()


def test_the_next_request_uses_a_retrained_subject(server):
    body = {"seed": 1, "num_inference_steps": 1}
    publish(server.storage, server.base, "growing", 20)
    client, seen = server.openai(), []
    for seed in (21, 22, 23):
        old = client.images.generate(model="growing", prompt="p", extra_body=body)
        record = publish(server.storage, server.base, "growing", seed)
        new = client.images.generate(model="growing", prompt="p", extra_body=body)
        assert new.model == record.name
        assert new.data[0].b64_json != old.data[0].b64_json
        seen.append((old.model, old.data[0].b64_json))
    for name, image in seen:
        again = client.images.generate(model=name, prompt="p", extra_body=body)
        assert again.data[0].b64_json == image


def test_a_prediction_is_created_and_read(server):
    body = {"model": "rex", "prompt": PROMPT, "seed": 3, "num_inference_steps": 4}
    with server.http() as client:
        first = client.put("/v1/predictions/mine", json=body)
        assert first.status_code in (200, 202)
        while (now := client.get("/v1/predictions/mine").json())["status"] == "processing":
            time.sleep(0.02)
        assert now["status"] == "succeeded"
        again = client.put("/v1/predictions/mine", json=body)
        assert (again.status_code, again.json()) == (200, now)
        plain = client.post("/v1/images/generations", json=body).json()
        assert now["output"]["data"] == plain["data"]
        other = client.put("/v1/predictions/mine", json=body | {"seed": 4})
        assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
        with server.http("zeta") as foreign:
            assert foreign.get("/v1/predictions/mine").status_code == 404
            assert foreign.delete("/v1/predictions/mine").status_code == 404
        assert client.delete("/v1/predictions/mine").json()["status"] == "succeeded"
        assert client.get("/v1/predictions/mine").status_code == 404
        assert client.put("/v1/predictions/a%20b", json=body).status_code == 400


def test_a_prediction_is_cancelled(server):
    body = {"model": "rex", "prompt": PROMPT, "n": 8, "num_inference_steps": 150}
    with server.http() as client:
        assert client.put("/v1/predictions/slow", json=body).status_code == 202
        assert client.delete("/v1/predictions/slow").json()["status"] == "canceled"
        assert client.get("/v1/predictions/slow").json()["status"] == "canceled"
        assert server.replica._queue.num_images == 0


def test_data_of_tenants_is_not_logged(server, caplog):
    with caplog.at_level(logging.DEBUG), server.http() as client:
        body = {"model": "rex", "prompt": SECRET, "num_inference_steps": 1}
        client.post("/v1/images/generations", json=body)
        client.post("/v1/images/generations", json=body | {SECRET: 1})
        client.post("/v1/images/generations", content=SECRET.encode())
        client.put(f"/v1/predictions/x?key={SECRET[:0]}", json=body | {"n": SECRET})
    text = "\n".join(
        r.getMessage() for r in caplog.records if r.name.startswith(("dbray", "uvicorn"))
    )
    assert SECRET not in text
    assert server.keys["acme"] not in text


def test_the_schema_describes_the_requests(server):
    with server.http(None) as client:
        schema = client.get("/openapi.json").json()
    body = schema["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/GenerationRequest")
    fields = schema["components"]["schemas"]["GenerationRequest"]["properties"]
    assert fields["num_inference_steps"]["anyOf"][0]["maximum"] == 150
    assert {"type": "null"} in fields["size"]["anyOf"]
    weighted = fields["models"]["anyOf"][0]["items"]["$ref"].rpartition("/")[2]
    assert schema["components"]["schemas"][weighted]["properties"]["weight"]["maximum"] == 2
    # The base is a Stable Diffusion, so "euler" is not offered.
    assert fields["scheduler"]["anyOf"][0]["enum"] == list(StableDiffusion.samplers)
    assert "/v1/models/{model}:warm" in schema["paths"]


def test_the_schema_describes_each_event_of_a_stream(server):
    body = {"model": "rex", "prompt": "p", "num_inference_steps": 4, "stream": True,
            "partial_images": 1}  # fmt: skip
    with server.http() as client:
        schema = client.get("/openapi.json").json()
        answer = client.post("/v1/images/generations", json=body)
    responses = schema["paths"]["/v1/images/generations"]["post"]["responses"]
    described = responses["200"]["content"]["text/event-stream"]["schema"]
    events = [dict(line.split(": ", 1) for line in event.splitlines())
              for event in answer.text.strip().split("\n\n")]  # fmt: skip
    assert len(events) == 2
    for event in events:
        assert sorted(event) == sorted(described["required"])
        assert event["event"] in described["properties"]["event"]["enum"]
        assert json.loads(event["data"])["type"] == event["event"]


def test_the_documentation_page_loads_nothing_from_other_sites(server):
    with server.http(None) as client:
        page = client.get("/docs")
    assert "POST /v1/images/generations" in page.text
    assert "guidance_scale" in page.text
    assert "<script" not in page.text
    assert "//" not in re.sub(r"<code>.*?</code>", "", page.text).replace("https://h", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_unsupported_methods_are_rejected(server):
    with server.http() as client:
        for path in ("/healthz", "/v1/models/rex", "/playground"):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == get.headers["content-length"]
        for path, allowed in (
            ("/v1/models/rex", "DELETE, GET, HEAD"),
            ("/v1/predictions/p", "DELETE, GET, HEAD, PUT"),
            ("/v1/images/generations", "POST"),
        ):  # fmt: skip
            answer = client.patch(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
            assert answer.json()["error"]["code"] == "method_not_allowed"
    with server.http(None) as client:
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"


def unfinished(server, name="acme", count=1):
    """Open connections that announce a body and send only its start."""
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n"
        f"authorization: Bearer {server.keys[name]}\r\n\r\n{{"
    )
    opened = []
    for _ in range(count):
        opened.append(socket.create_connection(("127.0.0.1", server.port)))
        opened[-1].sendall(head.encode())
    return opened


def test_unfinished_bodies_block_no_request_and_time_out(server, monkeypatch):
    monkeypatch.setattr(server.service, "places", Places(4, 0.5))
    opened = unfinished(server, count=40)
    body = {"model": "rex", "prompt": PROMPT, "num_inference_steps": 1}
    for name in ("acme", "zeta"):
        with server.http(name) as client:
            assert client.get("/healthz").status_code == 200
            assert client.post("/v1/images/generations", json=body).status_code == 200
    monkeypatch.setattr(server.service, "bodies", Bodies(0.01, 10))
    for connection in (*opened, *unfinished(server)):
        if connection in opened:
            connection.close()
            continue
        with connection, connection.makefile("rb") as answer:
            text = answer.read().decode()  # until the server closes the connection
            assert text.startswith("HTTP/1.1 408 ")
            assert "body_timeout" in text


def test_long_headers_are_rejected(server):
    with server.http() as client:
        answer = client.get("/healthz", headers={"x-long": "x" * 40_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
