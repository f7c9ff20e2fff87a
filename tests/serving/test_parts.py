"""Parts of dbray.serving that need neither Ray nor a model: queue, keys, bodies, guard, router."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace

import httpx
import pytest

from dbray.bases.generate import Sampling
from dbray.errors import SpecError
from dbray.method.mixing import UNTOUCHED
from dbray.serving import meters
from dbray.serving.http import wire
from dbray.serving.http.access.guard import Guard
from dbray.serving.http.access.tenants import Gate, RateLimit, is_loopback, new_key, read_keys
from dbray.serving.messages import Ask, Refusal, Refused, Share
from dbray.serving.options import ServeOptions
from dbray.serving.replica.fair_queue import FairQueue, Limits, Request, company, is_mixed
from dbray.serving.router import rank

pytestmark = pytest.mark.timeout(60)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_queue(**limits):
    clock = Clock()
    return FairQueue(Limits(**limits), clock), clock


def make_request(clock, subject="rex", tenant="t", num_images=1, steps=10, deadline=60.0, area=1.0):
    models = (Share(subject, "abc"),) if subject else ()
    ask = Ask(models, tenant, "p", tuple(range(num_images)), deadline)
    events = []
    request = Request(ask, Sampling(steps=steps), (32, 32), events.append, clock(), area)
    request.events = events
    return request


def put(queue, *requests, member=None):
    for request in requests:
        queue.push(request)
        queue.ready(request, None, member)


def taken(queue, resident="base"):
    return [
        (request.ask.subject, request.ask.tenant, index)
        for request, index in queue.take(resident, 0)
    ]


def test_requests_with_equal_sampling_share_a_batch():
    queue, clock = make_queue(batch_images=4)
    put(queue, make_request(clock, num_images=3), make_request(clock, "mia"), make_request(clock),
        make_request(clock, steps=20))  # fmt: skip
    assert taken(queue) == [("rex", "t", 0), ("rex", "t", 1), ("rex", "t", 2), ("rex", "t", 0)]
    assert taken(queue) == [("mia", "t", 0)]
    assert taken(queue) == [("rex", "t", 0)]


def put_low_rank(queue, clock, *subjects, **fields):
    """Put requests that may be mixed, and return them."""
    requests = [make_request(clock, subject, **fields) for subject in subjects]
    put(queue, *requests, member=UNTOUCHED)
    return requests


def test_requests_for_several_low_rank_models_share_a_batch():
    queue, clock = make_queue(batch_images=4)
    put_low_rank(queue, clock, "rex", "mia", "", "tom", "rex")
    assert [subject for subject, *_ in taken(queue, "?")] == ["rex", "mia", "", "tom"]
    assert taken(queue) == [("rex", "t", 0)]


@pytest.mark.parametrize(
    ("joining", "may_join"),
    [
        ({}, True),
        ({"steps": 11}, False),
        ({"size": (40, 32)}, False),
        ({"guidance": 1.0}, False),
        ({"negative_prompt": "blurry"}, False),
        ({"sampler": "euler"}, False),
        ({"member": None}, False),
        ({"member": None, "subject": "rex"}, True),
    ],
)
def test_which_requests_share_a_batch(joining, may_join):
    lead, other = put_low_rank(*make_queue(), "rex", joining.pop("subject", "mia"))
    if "member" in joining:
        lead.member = other.member = joining.pop("member")
    other.size = joining.pop("size", other.size)
    other.sampling = replace(other.sampling, **joining)
    assert other.may_join(lead) is may_join
    assert lead.may_join(other) is may_join
    assert company(lead, [other, lead], 4) == ([lead, other] if may_join else [lead])


def test_a_popular_model_is_served_alone_when_it_fills_a_batch():
    lead, mia, again = put_low_rank(*make_queue(), "rex", "mia", "rex", num_images=2)
    ready = [lead, mia, again]
    assert company(lead, ready, 4) == [lead, again]
    assert company(lead, ready, 5) == ready
    assert company(mia, ready, 4) == [mia, lead, again]


def test_when_factors_are_not_merged():
    queue, clock = make_queue()
    rex, mia, base = put_low_rank(queue, clock, "rex", "mia", "")
    whole = make_request(clock, "whole")

    def mixes(*requests):
        batch = [(request, 0) for request in requests]
        return [is_mixed(batch, is_exact) for is_exact in (True, False)]

    assert mixes(rex, mia) == mixes(rex, base) == [True, True]
    assert mixes(rex, rex) == [False, True]
    assert mixes(base, base) == mixes(whole, whole) == [False, False]


def test_whole_models_wait_no_longer_because_others_are_mixed():
    queue, clock = make_queue(batch_images=2, patience_seconds=2)
    put(queue, make_request(clock, "whole"))
    clock.now += 1
    for turn in range(4):
        put_low_rank(queue, clock, f"a{turn}", f"b{turn}")
    # The oldest is next, although the base is resident and others are ready to be mixed.
    assert taken(queue) == [("whole", "t", 0)]
    assert [len(taken(queue)) for _ in range(4)] == [2] * 4


def test_every_model_is_served_while_a_popular_one_fills_batches():
    queue, clock = make_queue(batch_images=2, patience_seconds=2, max_images_per_tenant=64)
    put_low_rank(queue, clock, "rare")
    served = []
    for _ in range(6):
        put_low_rank(queue, clock, "rex", "rex")
        served += taken(queue, "rex@abc")
        clock.now += 0.7
    assert ("rare", "t", 0) in served[:8]  # after at most patience_seconds


def test_tenants_have_equal_shares_of_mixed_batches():
    queue, clock = make_queue(batch_images=4, max_images_per_tenant=64)
    names = [f"m{index}" for index in range(24)]
    put_low_rank(queue, clock, *names, tenant="greedy")
    put_low_rank(queue, clock, *names[:8], tenant="modest")
    tenants = [tenant for _ in range(4) for _, tenant, _ in taken(queue)]
    assert tenants.count("modest") == 8


def test_requests_wait_for_their_weights():
    queue, clock = make_queue()
    request = make_request(clock)
    queue.push(request)
    assert taken(queue) == []
    queue.ready(request, None)
    assert taken(queue) == [("rex", "t", 0)]


def test_the_resident_subject_goes_first_for_a_limited_time():
    queue, clock = make_queue(patience_seconds=2)
    put(queue, make_request(clock, "mia"))
    clock.now += 1
    put(queue, make_request(clock, "rex"), make_request(clock, "rex", steps=11))
    assert taken(queue, "rex@abc")[0][0] == "rex"
    clock.now += 1.5
    assert taken(queue, "rex@abc")[0][0] == "mia"


def test_tenants_take_turns():
    queue, clock = make_queue(batch_images=1)
    put(queue, *(make_request(clock, f"a{i}", "greedy") for i in range(6)))
    put(queue, *(make_request(clock, f"b{i}", "modest") for i in range(2)))
    order = [taken(queue)[0][1] for _ in range(8)]
    assert order[:4].count("modest") == 2
    assert order[4:] == ["greedy"] * 4


def test_an_idle_tenant_gains_no_priority():
    queue, clock = make_queue(batch_images=1)
    put(queue, *(make_request(clock, f"a{i}", "old") for i in range(8)))
    for _ in range(4):
        taken(queue)
    put(queue, *(make_request(clock, f"b{i}", "new") for i in range(4)))
    assert [taken(queue)[0][1] for _ in range(4)].count("old") >= 2


def test_the_queue_has_limits_in_total_and_per_tenant():
    queue, clock = make_queue(max_images=5, max_images_per_tenant=3)
    put(queue, make_request(clock, num_images=3))
    with pytest.raises(Refused) as caught:
        queue.push(make_request(clock))
    assert caught.value.refusal.status == 429
    assert caught.value.refusal.headers()["retry-after"] == "1"
    with pytest.raises(Refused) as caught:
        queue.push(make_request(clock, tenant="u", num_images=3))
    assert (caught.value.refusal.status, caught.value.refusal.code) == (503, "overloaded")
    put(queue, make_request(clock, tenant="u", num_images=2))


def test_a_greedy_tenant_does_not_block_others():
    queue, clock = make_queue(max_images=8, max_images_per_tenant=4, batch_images=1)
    queue.done(cost=10, seconds=10)  # a second per step
    for tenant in ("greedy", "glutton"):
        put(queue, *(make_request(clock, f"{tenant}{i}", tenant, deadline=90) for i in range(4)))
    # Their 80 seconds do not delay another tenant's first 10.
    put(queue, make_request(clock, "b", "modest", deadline=30))
    with pytest.raises(Refused) as caught:
        queue.push(make_request(clock, "b", "hasty", deadline=39))
    assert caught.value.refusal.headers() == {"retry-after": "30"}
    with pytest.raises(Refused) as caught:
        queue.push(make_request(clock, "b", "late", num_images=4, deadline=1e6))
    assert caught.value.refusal.code == "overloaded"
    assert "modest" in [taken(queue)[0][1] for _ in range(3)]


def test_tenants_with_frequent_requests_get_equal_shares():
    queue, clock = make_queue(batch_images=10)
    sizes = {"large": 10, "small": 1}
    waiting = {tenant: make_request(clock, tenant, tenant, n) for tenant, n in sizes.items()}
    put(queue, *waiting.values())
    served = dict.fromkeys(sizes, 0)
    for _ in range(400):  # each sends a request when its last one is done, so it is often absent
        batch = queue.take("base", 0)
        request = batch[0][0]
        tenant = request.ask.tenant
        served[tenant] += len(batch)
        queue.withdraw(request)
        clock.now += 1
        put(queue, make_request(clock, tenant, tenant, sizes[tenant]))
    assert served["large"] == pytest.approx(served["small"], rel=0.1)


def test_a_larger_image_costs_more_and_fewer_share_a_batch():
    queue, clock = make_queue(batch_images=4)
    put(queue, make_request(clock, num_images=4, area=2.0))
    assert len(taken(queue)) == 2
    put(queue, make_request(clock, "b", "other", steps=39), make_request(clock, "c", "other"))
    assert [taken(queue)[0][0] for _ in range(2)] == ["b", "c"]  # 39 is less than was done for "t"
    put(queue, make_request(clock, "huge", area=9.0))
    assert [subject for subject, *_ in (*taken(queue), *taken(queue))] == ["rex", "rex", "huge"]


def test_a_request_that_cannot_meet_its_deadline_is_rejected_at_once():
    queue, clock = make_queue()
    queue.done(cost=10, seconds=10)  # a second per step
    put(queue, make_request(clock, steps=20, deadline=60))
    with pytest.raises(Refused) as caught:
        queue.push(make_request(clock, steps=20, deadline=30))
    assert caught.value.refusal.status == 503
    assert caught.value.refusal.headers() == {"retry-after": "20"}
    queue.push(make_request(clock, steps=20, deadline=50))


def test_an_abandoned_batch_delays_nobody():
    queue, clock = make_queue()
    queue.done(cost=10, seconds=10)
    request = make_request(clock, steps=50)
    put(queue, request)
    assert queue.take("base", 0)
    queue.withdraw(request)
    queue.push(make_request(clock, steps=50, deadline=60))


def test_short_requests_do_not_make_long_ones_look_late():
    queue, clock = make_queue()
    queue.done(cost=1000, seconds=10)
    for _ in range(5):
        queue.done(cost=1, seconds=1)  # mostly what each batch costs, however short
    put(queue, make_request(clock, steps=1000))
    queue.push(make_request(clock, steps=1000, deadline=60))


def test_an_idle_server_accepts_any_request():
    queue, clock = make_queue()
    queue.done(cost=10, seconds=10)
    put(queue, make_request(clock, steps=20, deadline=1))
    assert taken(queue)


def test_a_request_that_waited_too_long_is_rejected():
    queue, clock = make_queue()
    request = make_request(clock, deadline=5)
    queue.push(request)
    clock.now += 6
    assert taken(queue) == []
    [refusal] = request.events
    assert (refusal.status, refusal.code) == (503, "timed_out")


def test_a_withdrawn_request_frees_its_place():
    queue, clock = make_queue(max_images=1)
    request = make_request(clock)
    put(queue, request)
    queue.withdraw(request)
    put(queue, make_request(clock, "mia"))
    assert taken(queue) == [("mia", "t", 0)]


def write_keys(tmp_path, **changes):
    key, digest = new_key()
    data = {"keys": [{"name": "web", "sha256": digest, "tenant": "acme", **changes}],
            "images_per_minute": {"acme": 60}}  # fmt: skip
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps(data))
    return key, file


def test_only_a_valid_key_is_admitted(tmp_path):
    key, file = write_keys(tmp_path)
    assert key not in file.read_text()
    gate = Gate(file)
    found = gate.admit(f"Bearer {key}", "10.0.0.1", "generate")
    assert (found.name, found.tenant) == ("web", "acme")
    for given in (None, "", "Bearer", "Bearer ", f"Basic {key}", f"Bearer {key}x", "Bearer \udcff"):
        with pytest.raises(Refused) as caught:
            gate.admit(given, "127.0.0.1", "generate")
        assert caught.value.refusal.status == 401


@pytest.mark.parametrize("key", ["schl\u00fcssel-\u043a\u043b\u044e\u0447", "voil\u00e0"])
def test_a_key_may_have_any_characters(tmp_path, key):
    _, file = write_keys(tmp_path, sha256=hashlib.sha256(key.encode()).hexdigest())
    header = f"Bearer {key}".encode().decode("latin-1")  # as ASGI servers decode headers
    assert Gate(file).admit(header, "10.0.0.1", "generate").name == "web"


def test_scopes_and_ownership(tmp_path):
    key, file = write_keys(tmp_path)
    gate = Gate(file)
    with pytest.raises(Refused) as caught:
        gate.admit(f"Bearer {key}", None, "manage")
    assert caught.value.refusal.status == 403
    found = gate.admit(f"Bearer {key}", None, "generate")
    assert (found.sees("acme"), found.sees(None), found.sees("other")) == (True, True, False)
    assert (found.owns("acme"), found.owns(None), found.owns("other")) == (True, False, False)


def test_the_rate_of_a_tenant(tmp_path):
    key, file = write_keys(tmp_path)
    clock = Clock()
    gate = Gate(file, rate_share=0.5, clock=clock)
    found = gate.admit(f"Bearer {key}", None, "generate")
    for _ in range(3):
        gate.charge(found, 10)
    with pytest.raises(Refused) as caught:
        gate.charge(found, 10)
    assert caught.value.refusal.status == 429
    assert caught.value.refusal.headers()["retry-after"] == "20"
    clock.now += 20
    gate.charge(found, 10)


def test_a_charge_is_refunded(tmp_path):
    key, file = write_keys(tmp_path)
    gate = Gate(file, clock=Clock())
    found = gate.admit(f"Bearer {key}", None, "generate")
    for _ in range(20):
        gate.charge(found, 60)
        gate.refund(found, 60)
    gate.charge(found, 60)
    with pytest.raises(Refused):
        gate.charge(found, 1)


def test_keys_are_read_again_when_their_file_changes(tmp_path):
    old, file = write_keys(tmp_path)
    gate = Gate(file)
    gate.admit(f"Bearer {old}", None, "generate")
    (tmp_path / "new").mkdir()
    new, changed = write_keys(tmp_path / "new")
    changed.replace(file)
    assert gate.admit(f"Bearer {new}", None, "generate")
    with pytest.raises(Refused):
        gate.admit(f"Bearer {old}", None, "generate")
    for change in (lambda: file.write_text("keys: [broken"), file.unlink):
        change()
        assert gate.admit(f"Bearer {new}", None, "generate")


def test_a_bucket_refills_up_to_its_capacity():
    clock = Clock()
    bucket = RateLimit(1.0, clock)
    clock.now += 1e6
    assert bucket.take(60) == 0
    assert bucket.take(1) == pytest.approx(1.0)


def test_open_access_is_limited_to_this_machine():
    gate = Gate(None)
    assert gate.admit(None, "127.0.0.1", "manage").tenant == "*"
    for host in ("10.0.0.1", "203.0.113.9", None, ""):
        with pytest.raises(Refused):
            gate.admit(None, host, "generate")
    assert [is_loopback(h) for h in ("::1", "::ffff:127.0.0.1", "127.8.8.8")] == [True] * 3
    assert not is_loopback("::ffff:10.0.0.1")


@pytest.mark.parametrize(
    "change", [{"sha256": "secret"}, {"scopes": ["all"]}, {"tenant": ""}, {"colour": 1}]
)
def test_mistakes_in_a_key_file_are_reported(tmp_path, change):
    with pytest.raises(SpecError):
        read_keys(write_keys(tmp_path, **change)[1])


def test_a_key_file_that_is_not_yaml_is_not_quoted(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text('keys: ["hunter2-secret')
    with pytest.raises(SpecError) as caught:
        read_keys(file)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"[1]", "invalid_body", None),
        (b'"x"', "invalid_body", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[" * 60_000, "invalid_json", None),
        (b'{"model": "rex"}', "missing_required_parameter", "prompt"),
        (b'{"prompt": "p", "n": 11}', "invalid_value", "n"),
        (b'{"prompt": "p", "n": 1e99}', "invalid_value", "n"),
        (b'{"prompt": "p", "n": "2"}', "invalid_value", "n"),
        (b'{"prompt": "p", "n": true}', "invalid_value", "n"),
        (b'{"prompt": "p", "seed": -1}', "invalid_value", "seed"),
        (b'{"prompt": "p", "guidance_scale": NaN}', "invalid_value", "guidance_scale"),
        (b'{"prompt": "p", "secret_word": 1}', "unknown_parameter", "secret_word"),
        (b'{"prompt": "p", "a\\nb": 1}', "unknown_parameter", "?"),
        (b'{"prompt": "p", "model": "../../etc/passwd"}', "invalid_value", "model"),
        (b'{"prompt": "p", "model": "rex@../x"}', "invalid_value", "model"),
        (b'{"prompt": "p", "model": "rex\\n"}', "invalid_value", "model"),
        (b'{"prompt": "p", "size": "big"}', "invalid_value", "size"),
        (b'{"prompt": "p", "size": "0x32"}', "invalid_value", "size"),
        (b'{"prompt": "p", "size": "100000x100000"}', "invalid_value", "size"),
        (b'{"prompt": null}', "missing_required_parameter", "prompt"),
        (b'{"prompt": "p", "secret_word": null, "n": 0}', "invalid_value", "n"),
        (b'{"prompt": ""}', "invalid_value", "prompt"),
        (json.dumps({"prompt": "p" * 5000}).encode(), "invalid_value", "prompt"),
        (b'{"prompt": "p", "scheduler": "os.system"}', "invalid_value", "scheduler"),
    ],
)
def test_malformed_bodies_are_rejected(body, code, param):
    with pytest.raises(Refused) as caught:
        wire.parse_request(body)
    refusal = caught.value.refusal
    assert (refusal.status, refusal.code, refusal.param) == (400, code, param)
    for sent in ("etc/passwd", "os.system", "ppppp"):
        assert sent not in refusal.message


def parsed(**fields):
    return wire.parse_request(json.dumps({"prompt": "p"} | fields).encode())


def test_sizes_are_parsed():
    assert parsed().width_height is None
    assert parsed(size="64x32").width_height == (64, 32)


def test_null_means_absent():
    fields = wire.GenerationRequest.model_fields.keys() - {"prompt"}
    assert parsed(**dict.fromkeys(fields)) == parsed()


def test_sampling_fields_have_the_names_of_sampling():
    wish = parsed(
        scheduler="euler_ancestral", num_inference_steps=3, guidance_scale=2, negative_prompt="n"
    )
    assert Sampling(**wish.sampling) == Sampling("euler_ancestral", 3, 2, "n")
    assert parsed().sampling == {}


def test_only_unused_fields_are_reported_as_without_effect():
    assert parsed(quality="standard", background="opaque", moderation="auto").without_effect == []
    assert parsed(quality="high", style="natural").without_effect == ["quality", "style"]


def test_adding_a_replica_moves_only_its_share_of_models():
    replicas = ["r1", "r2", "r3"]
    homes = {f"m{i}": replicas[rank(f"m{i}", replicas)[0]] for i in range(300)}
    assert all(60 < list(homes.values()).count(replica) < 140 for replica in replicas)
    for model, home in homes.items():
        if home != "r3":
            assert ["r1", "r2"][rank(model, ["r1", "r2"])[0]] == home


def guarded(is_open=True, app=None):
    async def echo(scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})

    answered = []
    guard = Guard(app or echo, 1000, is_open, lambda *args: answered.append(args))
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(guard), base_url="http://127.0.0.1:8000"
    )
    return client, answered


def ask(client, **options):
    return asyncio.run(client.request("POST", "/", **options))


def test_large_bodies_are_rejected_with_and_without_a_length():
    async def endless():
        for _ in range(100):
            yield b"x" * 100

    client, answered = guarded()
    assert ask(client, content=b"x" * 1000).text == "1000"
    for content in (b"x" * 1001, endless()):
        response = ask(client, content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
    assert [status for _, status, _ in answered] == [200, 413, 413]


def test_other_sites_may_not_use_open_access():
    client, _ = guarded()
    assert ask(client, headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"},
                    {"origin": "http://127.0.0.1:9"}, {"host": "evil.example"}):  # fmt: skip
        assert ask(client, headers=headers).json()["error"]["code"] == "foreign_origin"
    client, _ = guarded(is_open=False)
    assert ask(client, headers={"host": "images.example"}).status_code == 200


def test_a_failure_reveals_nothing_about_the_request(caplog):
    async def fail(scope, receive, send):
        raise ValueError("the prompt was: my " + "tercs"[::-1])

    client, _ = guarded(app=fail)
    response = ask(client, headers={"x-request-id": "evil\tid"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "scret" not in response.text + caplog.text
    assert "ValueError" in caplog.text
    assert response.headers["x-request-id"].isalnum()


def test_rejections_have_a_retry_header():
    assert Refusal(404, "c", "m").headers() == {"x-should-retry": "false"}
    assert Refusal(401, "c", "m").headers()["www-authenticate"] == "Bearer"
    assert Refusal(408, "c", "m", retry_after=1).headers()["connection"] == "close"
    assert Refusal(503, "c", "m", retry_after=0.2).headers() == {"retry-after": "1"}
    assert Refusal(429, "c", "m").body()["error"]["type"] == "rate_limit_error"


def test_the_exposition_has_dbrays_families_once():
    text = (
        "# HELP ray_dbray_images Images.\n# TYPE ray_dbray_images counter\n"
        'ray_dbray_images{NodeAddress="n",SessionName="s",Version="2",WorkerId="w"} 3.0\n'
        "# HELP ray_other Other.\n# TYPE ray_other gauge\nray_other 1\n"
    )
    lines = meters.chosen([text, text.replace('"n"', '"m"')]).splitlines()
    assert lines == [
        "# HELP ray_dbray_images Images.", "# TYPE ray_dbray_images counter",
        'ray_dbray_images{NodeAddress="n",WorkerId="w"} 3.0',
        'ray_dbray_images{NodeAddress="m",WorkerId="w"} 3.0',
    ]  # fmt: skip


def test_options_are_described_and_checked():
    assert ServeOptions(registry="r").device == "auto"
    assert all(field.description for field in ServeOptions.model_fields.values())
    with pytest.raises(ValueError, match="num_replica"):
        ServeOptions.model_validate({"registry": "r", "num_replica": 2})


def test_a_digest_is_what_sha256sum_prints(tmp_path):
    key, digest = new_key()
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    assert len(key) > 40
