"""The service between routes and replicas: charges, predictions, takedown, full replicas."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import httpx
import pytest
from kit.records import publish
from kit.scores import scores

from dbray.errors import StoreError
from dbray.records import scores as score_layout
from dbray.serving.http import predictions, replicas, shelf
from dbray.serving.http.access.places import Bodies, Places
from dbray.serving.http.access.tenants import Gate, new_key
from dbray.serving.http.catalogue import Catalogue
from dbray.serving.http.ingress import guarded
from dbray.serving.http.predictions import Predictions
from dbray.serving.http.replicas import Replicas
from dbray.serving.http.service import Service
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import (
    NOT_FOUND,
    OVERLOADED,
    TIMED_OUT,
    Answer,
    Ask,
    Begun,
    Refusal,
    Refused,
    Share,
)
from dbray.serving.options import ServeOptions
from dbray.spec.recipe import Recipe
from dbray.storage.store import Store

pytestmark = pytest.mark.timeout(60)

BEGUN = Begun("ram", 1.0, 0.0, 32, 32)
REQUEST = GenerationRequest(prompt="p")
BODY = {"prompt": "p", "model": "rex", "seed": 1}


class Models:
    """A fake of the replicas with configured answers, by default one image."""

    def __init__(self):
        self.answers: list[Answer | Refusal | Exception] = []
        self.size_bytes = 1
        self.gate: asyncio.Event | None = None
        self.asked: list[Ask] = []
        self.ended: list[Ask] = []
        self.forgotten: list[str] = []

    async def generate(self, ask):
        self.asked.append(ask)
        try:
            if self.gate:
                await self.gate.wait()
        finally:
            self.ended.append(ask)
        answer = self.answers.pop(0) if self.answers else Answer(BEGUN, (b"x" * self.size_bytes,))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def stream(self, ask):
        answer = await self.generate(ask)
        yield answer if isinstance(answer, Refusal) else BEGUN

    async def warm(self, subject, revision, deadline_seconds):
        answer = await self.generate(make_ask(subject, deadline=deadline_seconds))
        return answer if isinstance(answer, Refusal) else ("ram", 1.0)

    async def forget(self, keys):
        self.forgotten += keys


class Site:
    """The application on a registry with one model without a tenant, without replicas."""

    def __init__(self, folder):
        self.storage = folder / "runs"
        self.rex = publish(self.storage, number=1)
        self.key, digest = new_key()
        scopes = ["generate", "manage"]
        file = folder / "keys.yaml"
        file.write_text(json.dumps({
            "keys": [{"name": "k", "sha256": digest, "tenant": "acme", "scopes": scopes}],
            "images_per_minute": {"acme": 10},
        }))  # fmt: skip
        self.models = Models()
        options = ServeOptions(registry=str(self.storage), keys=str(file))
        self.service = Service(
            options, Catalogue(str(self.storage), 0.0), Gate(file, clock=lambda: 0.0), self.models
        )
        self.predictions = Predictions(self.models)
        self._app = guarded(self.service, self.predictions)

    def client(self):
        headers = {"authorization": f"Bearer {self.key}"}
        transport = httpx.ASGITransport(self._app)
        return httpx.AsyncClient(transport=transport, base_url="http://h", headers=headers)

    def ask(self, method, path, **options):
        async def run():
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def images_left(self):
        """Count requests until the tenant's ten images of this minute are used up."""
        self.models.answers.clear()
        return [self.post().status_code for _ in range(11)].index(429)

    def post(self, **changes):
        return self.ask("POST", "/v1/images/generations", json=BODY | changes)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_a_503_is_not_charged_but_an_unknown_model_is(site, stream):
    site.models.answers = [OVERLOADED] * 3
    assert [site.post(n=5, stream=stream).status_code for _ in range(3)] == [503] * 3
    assert site.post(n=4, model="nobody", stream=stream).status_code == 404
    assert site.post(size="0x0", stream=stream).status_code == 400
    assert site.images_left() == 6


def test_warming_is_charged_and_rejected_while_draining(site):
    path = "/v1/models/rex:warm"
    assert site.ask("POST", path).status_code == 200
    site.models.answers = [OVERLOADED]
    assert site.ask("POST", path).status_code == 503
    site.service.draining = True
    assert site.ask("POST", path).json()["error"]["code"] == "draining"
    site.service.draining = False
    assert site.images_left() == 9


def test_warming_has_the_deadline_of_any_request(site, monkeypatch):
    site.service.options = site.service.options.model_copy(update={"deadline_seconds": 240.0})
    assert site.ask("POST", "/v1/models/rex:warm").status_code == 200
    assert site.models.asked[-1].deadline_seconds == 240.0
    monkeypatch.setattr(replicas, "_GRACE_SECONDS", 0.01)
    hanging = Response([], hangs=True)
    warmed = Replicas(Handle(hanging)).warm("rex", "abc", 0.01)
    assert asyncio.run(warmed) == TIMED_OUT
    assert hanging.cancelled


def test_a_storage_failure_is_a_503(site, monkeypatch):
    def fail(self, *arguments):
        raise StoreError("s3://secret-bucket: connection reset")

    for name in ("read_bytes", "names", "remove", "exists"):
        monkeypatch.setattr(Store, name, fail)
    calls = (
        ("GET", "/v1/models"), ("GET", "/v1/models/rex"), ("DELETE", "/v1/models/rex"),
        ("GET", "/v1/models/rex/previews/0.png"), ("POST", "/v1/models/rex:warm"),
        ("POST", "/v1/images/generations"), ("PUT", "/v1/predictions/p"),
    )  # fmt: skip
    for method, path in calls:
        answer = site.ask(method, path, json=BODY if method in ("POST", "PUT") else None)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
        assert answer.json()["error"]["code"] == "storage_unavailable"
        assert "secret-bucket" not in answer.text
    monkeypatch.undo()
    assert site.images_left() == 10


def test_a_repeated_prediction_is_charged_once(site):
    async def run():
        async with site.client() as client:
            put = "/v1/predictions/mine"
            answers = [await client.put(put, json=BODY | {"n": 4}) for _ in range(5)]
            other = await client.put(put, json=BODY | {"n": 3})
            return [answer.status_code for answer in answers], other.status_code

    codes, other = asyncio.run(run())
    assert (set(codes) <= {200, 202}, other, len(site.models.asked)) == (True, 409, 1)
    assert site.images_left() == 6


def test_a_takedown_of_one_revision_keeps_other_predictions(site):
    new = publish(site.storage, number=2)

    async def run():
        async with site.client() as client:
            for name, model in (("old", site.rex.name), ("new", "rex")):
                await client.put(f"/v1/predictions/{name}", json=BODY | {"model": model})
            assert (await client.get("/v1/predictions/old")).status_code == 200
            removed = await client.delete(f"/v1/models/{site.rex.name[:12]}")
            left = [
                (await client.get(f"/v1/predictions/{name}")).status_code for name in ("old", "new")
            ]
            return removed.status_code, left

    site.service.gate.admit = lambda *_: OPERATOR
    assert asyncio.run(run()) == (200, [404, 200])
    assert site.models.forgotten == [site.rex.name]
    assert Catalogue(str(site.storage), 0.0).find("rex") == new


def test_a_takedown_drops_predictions_before_it_waits_for_replicas(site):
    async def run():
        async with site.client() as client:
            await client.put("/v1/predictions/p", json=BODY)
            held = asyncio.Event()
            site.models.forget = lambda keys: held.wait()
            removing = asyncio.create_task(client.delete("/v1/models/rex"))
            while (await client.get("/v1/predictions/p")).status_code != 404:
                await asyncio.sleep(0)
            assert not removing.done()
            held.set()
            return (await removing).status_code

    site.service.gate.admit = lambda *_: OPERATOR
    assert asyncio.run(run()) == 200


class Silent:
    """A fake of a Ray Serve handle whose replicas do not answer in time."""

    def broadcast(self, *_):
        return self

    async def results_async(self, *, timeout_s, return_exceptions):
        raise TimeoutError("Timed out waiting for broadcast results.")


def test_a_takedown_with_slow_replicas_is_left_to_their_sweep(caplog):
    asyncio.run(Replicas(Silent()).forget(["rex@abc"]))
    assert "takedown has not reached every replica" in caplog.text


OPERATOR = Gate(None).admit(None, "127.0.0.1", "manage")


def test_a_subject_called_base_is_not_the_base(site):
    old = publish(site.storage, model_id="base", number=5)  # from before the name was reserved
    site.service.gate.admit = lambda *_: OPERATOR
    assert site.post(model="base").status_code == 200
    assert site.models.asked[-1].subject == ""
    assert site.ask("DELETE", "/v1/models/base").status_code == 200
    assert site.models.forgotten == [old.name]


def test_requests_carry_the_training_resolution(site):
    publish(site.storage, model_id="large", number=7, recipe=Recipe(resolution=1152))
    for model, expected in (("large", 1152), ("rex", None), ("base", None)):
        assert site.post(model=model).status_code == 200
        ask = site.models.asked[-1]
        assert (ask.resolution, ask.size) == (expected, None)


def test_models_are_filtered_by_the_server(site):
    publish(site.storage, model_id="teapot", number=6)

    def listed(**params):
        return [
            model["id"] for model in site.ask("GET", "/v1/models", params=params).json()["data"]
        ]

    assert listed() == ["base", "rex", "teapot"]
    assert listed(contains="EA") == ["teapot"]
    assert listed(contains="dog") == ["rex", "teapot"]
    assert listed(contains="as") == ["base"]
    assert listed(contains="nothing") == []


def test_slow_listings_do_not_delay_images(site, monkeypatch):
    opened = threading.Event()
    monkeypatch.setattr(site.service.catalogue, "models", lambda: opened.wait(30) and [])

    async def run():
        async with site.client() as client:
            listings = [asyncio.create_task(client.get("/v1/models")) for _ in range(100)]
            await asyncio.sleep(0)  # all have started, and there are fewer threads
            image = await client.post("/v1/images/generations", json=BODY)
            assert not any(listing.done() for listing in listings)
            opened.set()
            return image, await asyncio.gather(*listings)

    image, listings = asyncio.run(run())
    assert {answer.status_code for answer in (image, *listings)} == {200}


def make_ask(subject="rex", tenant="t", deadline=60.0):
    return Ask((Share(subject, "abc"),) if subject else (), tenant, "p", (1,), deadline)


def test_an_alias_is_its_model(site):
    aliases = {"dall-e-3": "rex", "plain": "base"}
    site.service.options = site.service.options.model_copy(update={"aliases": aliases})
    assert site.post(model="dall-e-3").json()["model"] == site.rex.name
    assert site.post(model="plain").json()["model"] == "base"
    assert site.ask("GET", "/v1/models/dall-e-3").json()["id"] == "rex"
    assert site.ask("POST", "/v1/models/dall-e-3:warm").json()["id"] == "rex"
    assert site.ask("DELETE", "/v1/models/dall-e-3").status_code == 404


def publish_lora(site, model_id, **fields):
    return publish(site.storage, model_id=model_id, recipe=Recipe(method="lora"), **fields)


def test_several_models_are_asked_for_as_one(site):
    names = [publish_lora(site, name, identifier=name).name for name in ("cat", "ink")]
    answer = site.post(model="cat+ink", prompt="a photo of a {subject}, ink dog")
    assert answer.json()["model"] == answer.headers["x-dbray-model"] == "+".join(names)
    assert "x-dbray-warning" not in answer.headers
    assert site.models.asked[-1].prompt == "a photo of a cat dog, ink dog"
    shares = [{"model": "cat"}, {"model": names[1], "weight": 0.5}]
    weighted = site.ask("POST", "/v1/images/generations", json={"prompt": "p", "models": shares})
    assert weighted.json()["model"] == f"{names[0]}+{names[1]}*0.5"
    assert weighted.headers["x-dbray-warning"].endswith("the identifier of ink")


def test_every_model_of_a_request_has_to_be_visible_and_of_low_rank(site):
    publish_lora(site, "cat")
    publish_lora(site, "foreign", tenant="zeta")
    codes = {"cat+foreign": "model_not_found", "cat+nobody": "model_not_found",
             "cat+rex": "not_combinable", "cat+base": "not_combinable"}  # fmt: skip
    for model, code in codes.items():
        error = site.post(model=model).json()["error"]
        assert (error["code"], error["param"]) == (code, "model"), model
    assert "'nobody' does not exist" in site.post(model="cat+nobody").json()["error"]["message"]
    both = site.post(model="cat", models=[{"model": "cat"}]).json()["error"]
    assert (both["code"], both["param"]) == ("invalid_value", "models")
    assert site.models.asked == []


def test_a_takedown_of_one_model_drops_predictions_of_its_sums(site):
    for name in ("cat", "ink"):
        publish_lora(site, name)

    async def run():
        async with site.client() as client:
            for name, model in (("sum", "cat+ink"), ("other", "cat")):
                body = BODY | {"model": model, "response_format": "url"}
                await client.put(f"/v1/predictions/{name}", json=body)
            urls = []
            for name in ("sum", "other"):
                while (answer := await client.get(f"/v1/predictions/{name}")).json()["status"] == (
                    "processing"
                ):
                    await asyncio.sleep(0)
                urls.append(answer.json()["output"]["data"][0]["url"])
            assert (await client.delete("/v1/models/ink")).status_code == 200
            paths = ["/v1/predictions/sum", "/v1/predictions/other", *urls]
            return [(await client.get(path)).status_code for path in paths]

    site.service.gate.admit = lambda *_: OPERATOR
    assert asyncio.run(run()) == [404, 200, 404, 200]


def test_an_alias_may_stand_for_several_models(site):
    names = [publish_lora(site, name).name for name in ("cat", "ink")]
    aliases = {"dall-e-3": "cat+ink"}
    site.service.options = site.service.options.model_copy(update={"aliases": aliases})
    assert site.post(model="dall-e-3").json()["model"] == "+".join(names)


def test_a_damaged_record_is_reported_to_its_owner_only(site):
    codes = {"acme": (500, "model_unusable"), "zeta": (404, "model_not_found")}
    for tenant, expected in codes.items():
        record = publish(site.storage, model_id=f"of-{tenant}", number=1, tenant=tenant)
        assert site.service.catalogue.find(record.id) == record
        Path(site.storage, "models", record.id, record.revision, "_COMMITTED").write_bytes(b"{}")
        answer = site.post(model=record.id)
        assert (answer.status_code, answer.json()["error"]["code"]) == expected


def test_a_vanished_registry_is_not_ready_and_gives_503(site):
    async def ready():
        return {}

    site.models.ready = ready
    assert site.ask("GET", "/readyz").status_code == 200
    site.storage.rename(site.storage.with_name("away"))
    for method, path in (("GET", "/readyz"), ("GET", "/v1/models"), ("GET", "/v1/models/rex")):
        answer = site.ask(method, path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
        assert answer.json()["error"]["code"] == "storage_unavailable"
    assert site.ask("GET", "/healthz").status_code == 200


def test_a_tenant_gets_its_share_of_the_places():
    places = Places(4, 0.5)
    for tenant in ("a", "a"):
        places.take(tenant)
    with pytest.raises(Refused) as caught:
        places.take("a")
    assert caught.value.refusal.status == 429
    for tenant in ("b", "c"):
        places.take(tenant)
    with pytest.raises(Refused) as caught:
        places.take("d")
    assert caught.value.refusal.status == 503
    places.leave("a")
    places.take("d")


def test_a_place_is_held_until_the_response_is_sent(site):
    site.models.gate = asyncio.Event()
    site.service.places = Places(2, 0.5)

    async def run():
        async with site.client() as client:
            first = asyncio.create_task(client.post("/v1/images/generations", json=BODY))
            while not site.models.asked:
                await asyncio.sleep(0)
            second = await client.post("/v1/images/generations", json=BODY)
            listing = await client.get("/v1/models")
            healthy = await client.get("/healthz")
            site.models.gate.set()
            return [a.status_code for a in (second, listing, healthy, await first)]

    assert asyncio.run(run()) == [429, 429, 200, 200]
    assert site.post().status_code == 200


def test_the_oldest_unfinished_body_is_dropped_for_new_ones():
    async def run():
        bodies = Bodies(60.0, 2, pause_seconds=0.0)
        first = [asyncio.create_task(bodies.read("t", asyncio.Event().wait())) for _ in range(2)]
        other = asyncio.create_task(bodies.read("u", asyncio.Event().wait()))
        await asyncio.sleep(0)

        async def whole():
            await asyncio.sleep(0)
            return b"{}"

        assert await bodies.read("t", whole()) == b"{}"
        with pytest.raises(Refused) as caught:
            await first[0]
        assert caught.value.refusal.status == 408
        assert not first[1].done()
        assert not other.done()
        for task in (first[1], other):
            task.cancel()

    asyncio.run(run())


def test_who_lost_a_body_to_a_newer_one_waits_for_the_answer():
    """Reopened at once, 600 connections would keep the server busy with nothing else."""

    async def run():
        bodies = Bodies(60.0, 1, pause_seconds=60.0)
        first = asyncio.create_task(bodies.read("t", asyncio.Event().wait()))
        await asyncio.sleep(0)

        async def whole():
            return b"{}"

        assert await bodies.read("t", whole()) == b"{}"
        done, _ = await asyncio.wait([first], timeout=0.05)
        assert not done
        assert await bodies.read("t", whole()) == b"{}"  # it takes no room meanwhile
        first.cancel()

    asyncio.run(run())


def test_a_body_that_is_timing_out_makes_room_too():
    async def run():
        bodies = Bodies(0.0, 1)
        first = asyncio.create_task(bodies.read("t", asyncio.Event().wait()))
        for _ in range(2):  # it waits; then its timer has fired, and its task has not run yet
            await asyncio.sleep(0)

        async def whole():
            return b"{}"

        assert await bodies.read("t", whole()) == b"{}"
        with pytest.raises(Refused):
            await first

    asyncio.run(run())


def test_images_are_kept_for_an_hour_fairly_between_tenants(monkeypatch):
    monkeypatch.setattr(shelf, "MAX_BYTES", 100)
    now = [0.0]
    kept = shelf.Shelf(lambda: now[0])
    [small] = kept.put(make_ask(tenant="small"), [b"x" * 10])
    large = kept.put(make_ask(tenant="large"), [b"y" * 40] * 3)
    assert [len(kept.get(name) or b"") for name in (small, *large)] == [10, 0, 40, 40]
    assert len(set(large)) == 3
    now[0] += shelf.KEEP_SECONDS
    assert kept.get(small) is None


async def settled(store, name="p", tenant="t"):
    """Wait for a prediction to end; the test's time limit is the limit."""
    while (outcome := await store.get(tenant, name)) and outcome.status == "processing":
        await asyncio.sleep(0)
    return outcome


def test_a_prediction_with_a_temporary_failure_can_be_repeated():
    async def run():
        models = Models()
        store = Predictions(models)
        models.answers = [OVERLOADED, ValueError("a bug"), NOT_FOUND]
        seen = []
        for _ in range(5):
            await store.put("p", "d", make_ask(), REQUEST)
            outcome = await settled(store)
            seen.append((outcome.status, outcome.result.code))
        return seen, len(models.asked)

    seen, num_asked = asyncio.run(run())
    assert seen == [
        ("failed", "overloaded"), ("failed", "internal_error"), *[("failed", "model_not_found")] * 3
    ]  # fmt: skip
    assert num_asked == 3


def test_a_cancelled_or_forgotten_prediction_ends_its_work():
    async def run():
        models = Models()
        models.gate = asyncio.Event()
        store = Predictions(models)
        for name, subject in (("a", "rex"), ("b", "mia"), ("c", "tom")):
            await store.put(name, "d", make_ask(subject), REQUEST)
        while len(models.asked) < 3:
            await asyncio.sleep(0)
        await store.cancel("t", "a")
        await store.forget(["mia@abc"])
        while len(models.ended) < 2:
            await asyncio.sleep(0)
        kept = [await store.get("t", name) for name in "abc"]
        return [outcome and outcome.status for outcome in kept], len(models.ended)

    assert asyncio.run(run()) == (["canceled", None, "processing"], 2)


def test_the_tenant_with_the_most_predictions_makes_room(monkeypatch):
    monkeypatch.setattr(predictions, "MAX_BYTES", 100)

    async def run():
        models = Models()
        store = Predictions(models)
        puts = [("small", "first", 10), *[("large", str(number), 30) for number in range(4)]]
        for tenant, name, models.size_bytes in puts:
            await store.put(name, "d", make_ask(tenant=tenant), REQUEST)
            await settled(store, name, tenant)
        names = [("small", "first"), *[("large", str(number)) for number in range(4)]]
        return [bool(await store.get(tenant, name)) for tenant, name in names]

    assert asyncio.run(run()) == [True, False, True, True, True]


class Response:
    """A fake of a Ray Serve response."""

    def __init__(self, events, hangs=False):
        self._events, self._hangs = list(events), hangs
        self.cancelled = False

    def cancel(self):
        self.cancelled = True

    def __await__(self):
        return self.__anext__().__await__()

    async def __anext__(self):
        if self._events:
            return self._events.pop(0)
        if self._hangs:
            await asyncio.Event().wait()
        raise StopAsyncIteration


class Handle:
    """A fake of a Ray Serve handle with prepared responses that records the requested replicas."""

    def __init__(self, *responses):
        self._responses = list(responses)
        self._options = {}
        self.asked = []

    def options(self, **options):
        self._options = self._options | options
        return self

    @property
    def generate(self):
        return self

    stream = warm = generate

    def remote(self, *_):
        self.asked.append(self._options.pop("multiplexed_model_id", ""))
        return self._responses.pop(0)


async def collect(events):
    return [event async for event in events]


def test_a_full_home_replica_passes_a_request_on_once():
    full, answer = Response([OVERLOADED]), Answer(BEGUN, (b"x",))
    handle = Handle(full, Response([answer]))
    assert asyncio.run(Replicas(handle).generate(make_ask())) == answer
    assert handle.asked == ["rex", ""]
    handle = Handle(Response([OVERLOADED]), Response([OVERLOADED]))
    assert asyncio.run(Replicas(handle).generate(make_ask())) == OVERLOADED
    handle = Handle(Response([OVERLOADED]), Response([BEGUN]))
    assert asyncio.run(collect(Replicas(handle).stream(make_ask()))) == [BEGUN]
    assert handle.asked == ["rex", ""]
    too_many = Refusal(429, "too_many_requests", "m", retry_after=1)
    for ask, refusal in ((make_ask(), too_many), (make_ask(""), OVERLOADED)):
        handle = Handle(Response([refusal]))
        assert asyncio.run(Replicas(handle).generate(ask)) == refusal


def test_a_hanging_replica_is_given_up_and_cancelled(monkeypatch):
    monkeypatch.setattr(replicas, "_GRACE_SECONDS", 0.01)
    hanging = Response([], hangs=True)
    assert asyncio.run(Replicas(Handle(hanging)).generate(make_ask(deadline=0.01))) == TIMED_OUT
    assert hanging.cancelled
    hanging = Response([BEGUN], hangs=True)
    events = asyncio.run(collect(Replicas(Handle(hanging)).stream(make_ask(deadline=0.01))))
    assert events == [BEGUN, TIMED_OUT]
    assert hanging.cancelled
    done = Response([BEGUN])
    assert asyncio.run(collect(Replicas(Handle(done)).stream(make_ask()))) == [BEGUN]
    assert not done.cancelled


@pytest.mark.parametrize("call", ["generate", "stream"])
def test_a_cancelled_call_ends_its_work(call):
    hanging = Response([], hangs=True)
    models = Replicas(Handle(hanging))

    async def run():
        work = models.generate(make_ask()) if call == "generate" else collect(
            models.stream(make_ask())
        )  # fmt: skip
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert hanging.cancelled


def test_models_are_sorted_by_a_score_page_by_page(site):
    found = {"rex": 0.5, "ann": 0.9, "bob": 0.7, "new": None}
    for name, identity in found.items():
        model = site.rex if name == "rex" else publish(site.storage, model_id=name, number=8)
        if identity is not None:
            values = scores(identity=identity, base_identity=0.45)
            files = score_layout.files_of(values, {})
            score_layout.annex(Store(str(site.storage)), model.name).publish(files)

    def listed(**params):
        body = site.ask("GET", "/v1/models", params={"sort": "identity", **params}).json()
        return [model["id"] for model in body["data"]], body["has_more"]

    assert listed() == (["base", "ann", "bob", "rex", "new"], False)
    assert listed(limit=2) == (["base", "ann", "bob"], True)
    assert listed(limit=2, after="bob") == (["rex", "new"], False)
    assert listed(after="removed") == ([], False)
    assert site.ask("GET", "/v1/models", params={"sort": "beauty"}).status_code == 400
    about = site.ask("GET", "/v1/models/rex").json()["dbray"]
    assert about["scores"]["identity"] == 0.5
    assert [flag["kind"] for flag in about["flags"]] == ["unlike"]
    assert "scores" not in site.ask("GET", "/v1/models/new").json()["dbray"]
