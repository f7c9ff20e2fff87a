"""dbray.serving on a real Ray Serve with two replicas: routing, tiers, kills, takedown, metrics."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from kit.low_rank import publish_lora
from kit.processes import started

from dbray.subjects.images import decode_png

pytestmark = [pytest.mark.timeout(180), pytest.mark.ray]

BODY = {"prompt": "a photo of {subject}", "seed": 7, "num_inference_steps": 3}


@pytest.fixture
def client(site):
    with httpx.Client(base_url=site.url, timeout=60) as client:
        yield client


def post(client, model, **changes):
    return client.post("/v1/images/generations", json=BODY | {"model": model} | changes)


def wait_for(condition):
    """Wait for a condition; the test's time limit is the limit."""
    while not (value := condition()):
        time.sleep(0.05)
    return value


def test_the_openai_client_gets_images(site):
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="none")
    answer = client.images.generate(
        model="rex", prompt=BODY["prompt"], n=2, extra_body={"num_inference_steps": 3}
    )
    for image in answer.data:
        assert decode_png(base64.b64decode(image.b64_json)).shape == (32, 32, 3)
    stream = client.images.generate(
        model="rex", prompt=BODY["prompt"], stream=True, partial_images=1,
        extra_body={"num_inference_steps": 4},
    )  # fmt: skip
    assert [event.type.split(".")[1] for event in stream] == ["partial_image", "completed"]
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="nobody", prompt="p")


def test_the_form_type_of_curl_is_accepted(client):
    response = client.post(
        "/v1/images/generations",
        content=b'{"model": "rex", "prompt": "p", "num_inference_steps": 1}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert response.status_code == 200
    assert len(response.headers.get_list("x-request-id")) == 1


def test_a_subject_is_loaded_by_one_replica(site, client):
    for _ in range(3):
        for name in ("rex", "mia", "tom"):
            assert post(client, name).status_code == 200
    held = [{key.split("@")[0] for key in f["keys"]["ram"]} for f in site.figures()]
    assert len(held) == 2
    assert not held[0] & held[1]
    post(client, "rex")
    assert post(client, "rex").headers["x-dbray-cache"] == "resident"


def test_warming_and_readiness(site, client):
    record = site.publish("warmed", 30)
    warmed = client.post("/v1/models/warmed:warm").json()
    assert (warmed["revision"], warmed["source"]) == (record.revision, "disk")
    assert post(client, "warmed").headers["x-dbray-cache"] == "device"
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["device"], ready["resolution"]) == ("ok", "cpu", 32)


def test_many_subjects_at_once_within_the_budget(site, client):
    names = [f"many{i}" for i in range(8)]
    expected = {}
    for seed, name in enumerate(names):
        site.publish(name, 100 + seed)
        expected[name] = post(client, name).json()["data"]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: (name, post(client, name)), names * 4))
    for name, answer in answers:
        assert answer.status_code == 200
        got, want = (
            decode_png(base64.b64decode(data[0]["b64_json"])).astype(int)
            for data in (answer.json()["data"], expected[name])
        )
        assert abs(got - want).max() <= 1
    for figures in site.figures():
        assert len(figures["keys"]["device"]) <= 2
        assert len(figures["keys"]["ram"]) <= 4


def test_many_unknown_ids_evict_nothing(site, client):
    for name in ("rex", "mia"):
        post(client, name)
    before = [figures["keys"] for figures in site.figures()]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: post(client, f"unknown{i}"), range(80)))
    assert {answer.status_code for answer in answers} == {404}
    assert [figures["keys"] for figures in site.figures()] == before


def test_a_disconnected_client_frees_the_replica(site, client):
    body = BODY | {"model": "rex", "num_inference_steps": 999, "n": 4}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=body, timeout=0.5)
    with client.stream("POST", "/v1/images/generations", json=body | {"stream": True}) as stream:
        assert stream.status_code == 200
    started = time.monotonic()
    assert post(client, "rex").status_code == 200
    freed = time.monotonic() - started
    started = time.monotonic()
    assert post(client, "rex", num_inference_steps=999, n=4).status_code == 200
    assert freed < (time.monotonic() - started) / 2


def test_too_many_requests_are_rejected_with_retry_after(client):
    with ThreadPoolExecutor(14) as pool:  # two replicas hold 8 of these requests
        slow = {"n": 4, "num_inference_steps": 150}
        answers = list(pool.map(lambda _: post(client, "rex", **slow), range(14)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes[0] == 200
    assert set(codes[1:]) <= {200, 429, 503}
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] in ("overloaded", "too_many_requests")


def test_a_full_replica_passes_requests_on(site, client):
    site.publish("crowded", 41)
    with ThreadPoolExecutor(7) as pool:  # a batch and 12 waiting images fill one replica
        slow = {"n": 4, "num_inference_steps": 60}  # more would meet the deadline on a busy machine
        answers = list(pool.map(lambda seed: post(client, "crowded", seed=seed, **slow), range(6)))
        stream = post(client, "crowded", stream=True, **slow)
    assert [answer.status_code for answer in (*answers, stream)] == [200] * 7
    held = [str(figures["keys"]) for figures in site.figures()]
    assert ["crowded" in keys for keys in held] == [True, True]


def test_a_takedown_reaches_every_replica(site, client):
    site.publish("doomed", 40)
    assert post(client, "doomed").status_code == 200
    assert client.delete("/v1/models/doomed").json()["deleted"]
    assert post(client, "doomed").status_code == 404
    for figures in site.figures():
        assert not any("doomed" in str(keys) for keys in figures["keys"].values())
        assert "doomed" not in figures["resident"]


def test_a_prediction_survives_its_connection(site, client):
    begun = client.put("/v1/predictions/p1", json=BODY | {"model": "rex"})
    assert begun.status_code in (200, 202)

    def ended():
        now = client.get("/v1/predictions/p1").json()
        return now if now["status"] != "processing" else None

    assert wait_for(ended)["output"]["data"] == post(client, "rex").json()["data"]


def test_a_cancelled_prediction_frees_the_replica(site, client):
    body = BODY | {"model": "rex", "num_inference_steps": 999, "n": 10}
    assert client.put("/v1/predictions/long", json=body).status_code == 202
    wait_for(lambda: any(figures["queued_images"] for figures in site.figures()))
    assert client.delete("/v1/predictions/long").json()["status"] == "canceled"
    wait_for(lambda: not any(figures["queued_images"] for figures in site.figures()))
    assert client.get("/v1/predictions/long").json()["status"] == "canceled"


def test_the_page_and_the_schema_are_served(client):
    assert "text/html" in client.get("/playground").headers["content-type"]
    assert "/v1/images/generations" in client.get("/openapi.json").json()["paths"]


def test_metrics_have_no_label_per_subject(client):
    post(client, "rex")

    def figures():
        text = client.get("/metrics").text
        return text if "ray_dbray_cache_hits" in text and "ray_dbray_requests" in text else None

    text = wait_for(figures)
    for name in ("dbray_request_seconds", "dbray_cache_bytes", "dbray_images", "dbray_batch_images",
                 "dbray_cache_load_seconds", "dbray_queue_seconds"):  # fmt: skip
        assert f"ray_{name}" in text
    assert "rex" not in text


def test_a_request_whose_ingress_dies_gets_our_error_body(site, client):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, client, "rex", n=10, num_inference_steps=400)
        wait_for(lambda: any(figures["queued_images"] for figures in site.figures()))
        started("dbray:Ingress")[0].kill()
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert answer.headers["x-request-id"]
    wait_for(lambda: client.get("/healthz").status_code == 200)


def pixels(data):
    return decode_png(base64.b64decode(data[0]["b64_json"])).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "levels"), [("whole", 0), ("mixed", 2)])
def test_a_killed_replica_gives_no_wrong_image(site, client, kind, levels):
    names = ("rex", "mia", "tom") if kind == "whole" else [
        publish_lora(site.storage, site.base, f"lora{seed}", seed).id for seed in range(6)
    ]  # fmt: skip
    expected = {name: post(client, name).json()["data"] for name in names}
    stop, answers = threading.Event(), []

    def load(name):
        while not stop.is_set():
            answers.append((time.monotonic(), name, post(client, name)))

    with ThreadPoolExecutor(len(names)) as pool:
        futures = [pool.submit(load, name) for name in expected]
        try:
            wait_for(lambda: len(answers) > 10)
            pids = {figures["pid"] for figures in site.figures()}
            killed = time.monotonic()
            os.kill(min(pids), signal.SIGKILL)
            wait_for(lambda: {f["pid"] for f in site.figures()} - pids)
            done = len(answers)
            wait_for(lambda: len(answers) > done + 10)
        finally:
            stop.set()
        for future in futures:
            future.result()
    assert sum(at > killed for at, *_ in answers) > 10
    failed = [answer for _, _, answer in answers if answer.status_code != 200]
    assert len(failed) <= len(names)
    assert all(answer.status_code == 503 and "retry-after" in answer.headers for answer in failed)
    for _, name, answer in answers:
        if answer.status_code == 200:
            difference = pixels(answer.json()["data"]) - pixels(expected[name])
            assert np.abs(difference).max() <= levels, name
