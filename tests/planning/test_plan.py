"""Plans: the remaining work, with every value resolved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from kit import records
from kit.storage import count_requests
from kit.worlds import load_job

from dbray import bases
from dbray.errors import LaneLost, SpecError, SubjectError
from dbray.hardware import Hardware
from dbray.planning.checks import check_job, resolve_job
from dbray.planning.cost import estimate, latest_rates, num_lanes, num_prior_actors, too_small
from dbray.planning.plan import make_plan
from dbray.records.prior_sets import DESCRIPTION, PriorPlan, describe, encode_part, part_name
from dbray.records.results import RESULTS_FILE, Failure, Outcome, Rates
from dbray.run.journal import Journal
from dbray.spec.canon import digest_json
from dbray.spec.job import Job
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.spec.subject import Subject
from dbray.storage.store import Store
from dbray.subjects import validation

SUBJECTS = {"rex": "dog", "fido": "dog", "tom": "cat"}


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture
def job(tmp_path, tiny_base):
    return load_job(tmp_path, tiny_base, SUBJECTS)


def plan_of(job, **options):
    return make_plan(check_job(job).ready(), Store(job.storage), **options)


def publish(plan, planned):
    records.publish(plan.job.storage, records.record_of(plan, planned))


def by_id(plan):
    return {planned.subject.id: planned for planned in (*plan.to_train, *plan.kept)}


def test_one_prior_set_per_class_noun(job):
    plan = plan_of(job)
    assert {one.subject.id for one in plan.to_train} == set(SUBJECTS)
    assert [prior.class_noun for prior in plan.missing_priors] == ["cat", "dog"]
    assert plan.num_prior_images == 12
    planned = by_id(plan)
    assert planned["rex"].prior_digest == planned["fido"].prior_digest
    assert planned["rex"].prior_digest != planned["tom"].prior_digest


def test_a_plan_is_deterministic(job):
    assert plan_of(job) == plan_of(job)


def test_published_subjects_are_kept_with_their_identifiers(job):
    first = plan_of(job)
    publish(first, by_id(first)["rex"])
    second = plan_of(job)
    assert [one.subject.id for one in second.kept] == ["rex"]
    assert by_id(second) == by_id(first)


def test_planning_reads_the_latest_record_of_every_model_once(job, monkeypatch):
    first = plan_of(job)
    for name in ("fido", "rex"):
        publish(first, by_id(first)[name])
    requests = count_requests(monkeypatch)
    assert {one.subject.id for one in plan_of(job).kept} == {"fido", "rex"}
    read = [path for action, path in requests if action == "open" and path.startswith("models/")]
    read = [path for path in read if not path.startswith("models/tom/")]  # was never published
    assert len(read) == len(set(read)) == 4, "a marker and a record of each"


def test_a_model_with_a_corrupt_record_is_trained_again_and_replaced(job):
    first = plan_of(job)
    for name in ("fido", "rex"):
        publish(first, by_id(first)[name])
    rex = by_id(first)["rex"]
    Store(job.storage).write_bytes(f"models/rex/{rex.revision}/model.json", b"{")
    second = plan_of(job)
    assert [one.subject.id for one in second.kept] == ["fido"]
    assert by_id(second)["rex"] == rex
    publish(second, rex)
    assert [one.subject.id for one in plan_of(job).kept] == ["fido", "rex"]


@pytest.mark.parametrize("published", list(SUBJECTS))
def test_the_journal_lists_subjects_in_the_order_of_the_manifest(job, published):
    first = plan_of(job)
    publish(first, by_id(first)[published])
    store = Store(job.storage)
    Journal(store, "job").begin(plan_of(job), "0")
    listed = [one["id"] for one in store.read_json("jobs/job/job.json")["subjects"]]
    assert listed == [one.subject.id for one in validation.validate(job.subjects).subjects]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"steps": 9}},
        {"recipe": {"seed": 1}},
        {"prior": {"seed": 1}},
        {"recipe": {"prior_weight": 0.5}},
    ],
)
def test_inputs_that_affect_the_weights_change_the_fingerprint(tmp_path, tiny_base, job, change):
    first = plan_of(job)
    publish(first, by_id(first)["rex"])
    changed = load_job(tmp_path, tiny_base, SUBJECTS, **change)
    assert plan_of(changed).kept == ()


@pytest.mark.parametrize(
    "change",
    [{"previews": {"seed": 1}}, {"resources": {"lanes": 2, "device": "cuda"}}, {"id": "other"}],
)
def test_other_inputs_keep_the_fingerprint(tmp_path, tiny_base, job, change):
    first = plan_of(job)
    publish(first, by_id(first)["rex"])
    changed = load_job(tmp_path, tiny_base, SUBJECTS, **change)
    assert [one.subject.id for one in plan_of(changed).kept] == ["rex"]


def test_the_name_of_a_preset_is_not_part_of_a_fingerprint(tmp_path, tiny_base):
    named = load_job(tmp_path, tiny_base, SUBJECTS, recipe={"preset": "hackathon"})
    values = {"learning_rate": 1e-3, "prior_weight": 0}
    written = load_job(tmp_path, tiny_base, SUBJECTS, recipe=values)
    assert by_id(plan_of(named)) == by_id(plan_of(written))


@pytest.mark.parametrize(("noun", "caption", "added"), [
    ("dog", "a {subject} beside a {class}", {}),
    ("owl", "a {subject}", {}),
    ("owl", "a {subject} beside a {class}", {"article": "an"}),
])  # fmt: skip
def test_only_prompts_with_an_have_new_fingerprints(job, base, noun, caption, added):
    images = [str(path) for path in sorted(Path(job.subjects, "rex").glob("*.png"))]
    rex = Subject(id="rex", class_noun=noun, images=images, captions=[caption] * len(images))
    plan = plan_of(job.model_copy(update={"subjects": (rex,)}))
    [planned] = plan.to_train
    prior = {"base": base.digest, "class_noun": noun, "prior": plan.job.prior.identity()}
    prior |= {"prompt": "an owl"} if noun == "owl" else {}
    assert planned.prior_digest == digest_json(prior)
    assert planned.fingerprint == digest_json({
        "version": 1, "base": base.digest, "subject": "rex", "images": planned.image_digests,
        "class_noun": noun, "captions": rex.captions, "identifier": planned.identifier,
        "recipe": plan.job.recipe.identity(), "prior": planned.prior_digest, **added,
    })  # fmt: skip


def test_class_images_of_a_set_with_another_count_are_not_counted(job, base):
    prior = check_job(job).ready().job.prior.model_copy(update={"count": 20})
    made, store = PriorPlan(base.digest, "dog", prior), Store(job.storage)
    for part in range(made.num_parts):
        indices = made.indices(part)
        data = encode_part(indices, [0] * len(indices), [b"png"] * len(indices))
        store.write_bytes(f"{made.folder}/{part_name(part)}", data)
    store.write_json(f"{made.folder}/{DESCRIPTION}", describe(made, "base", {}))
    store.seal(made.folder, made.files)
    more = job.model_copy(update={"prior": job.prior.model_copy(update={"count": 40})})
    assert plan_of(more).num_prior_images == 40 + 24


TAUGHT = {"prior": {"kind": "teacher"}}


def test_a_teacher_needs_no_class_images(tmp_path, tiny_base, job):
    taught = load_job(tmp_path, tiny_base, SUBJECTS, **TAUGHT)
    plan = plan_of(taught)
    assert plan.missing_priors == ()
    assert {(one.is_taught, one.prior_digest) for one in plan.to_train} == {(True, None)}
    with_images = by_id(plan_of(job))
    assert not with_images["rex"].is_taught
    assert by_id(plan)["rex"].fingerprint != with_images["rex"].fingerprint
    cost = estimate(plan, Hardware(2, 0), None)
    assert cost.lesson_bytes == 8 * (4 * 8 * 8) * 4
    assert cost.storage_bytes["class images"] == 0
    assert estimate(plan_of(job), Hardware(2, 0), None).lesson_bytes == 0


@pytest.mark.parametrize(("change", "is_other"), [
    ({"count": 9, "seed": 3, "guidance": 2.0}, False), ({"prompt": "one {class}"}, True),
])  # fmt: skip
def test_how_images_would_be_sampled_does_not_change_what_is_taught(
    tmp_path, tiny_base, change, is_other
):
    first = plan_of(load_job(tmp_path, tiny_base, SUBJECTS, **TAUGHT))
    prior = TAUGHT["prior"] | change
    second = plan_of(load_job(tmp_path, tiny_base, SUBJECTS, prior=prior))
    assert (by_id(first)["rex"].fingerprint != by_id(second)["rex"].fingerprint) == is_other


def test_without_a_class_noun_no_class_is_kept(tmp_path, tiny_base):
    nouns = {"rex": "none", "tom": "cat"}
    for changes in ({}, TAUGHT):
        plan = by_id(plan_of(load_job(tmp_path, tiny_base, nouns, **changes)))
        assert (plan["rex"].prior_digest, plan["rex"].is_taught) == (None, False)
        assert (plan["tom"].prior_digest is None) == plan["tom"].is_taught == bool(changes)


def test_subjects_with_changed_images_are_trained_again(tmp_path, tiny_base, job):
    first = plan_of(job)
    publish(first, by_id(first)["rex"])
    image = tmp_path / "photos" / "rex" / "0.png"
    image.write_bytes((tmp_path / "photos" / "tom" / "0.png").read_bytes())
    assert plan_of(job).kept == ()


def test_without_prior_weight_no_class_images_are_made(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS, recipe={"prior_weight": 0})
    plan = plan_of(job)
    assert plan.missing_priors == ()
    assert {one.prior_digest for one in plan.to_train} == {None}


def test_identifiers_avoid_those_of_other_published_models(tmp_path, tiny_base, job):
    taken = by_id(plan_of(job))["rex"].identifier
    other = load_job(tmp_path / "other", tiny_base, {"bello": "dog"}, storage=job.storage)
    manifest_file = tmp_path / "other" / "named.jsonl"
    image = str(tmp_path / "other" / "photos" / "bello" / "0.png")
    row = {"id": "bello", "class_noun": "dog", "images": [image], "identifier": taken}
    manifest_file.write_text(json.dumps(row))
    other_plan = plan_of(other.model_copy(update={"subjects": str(manifest_file)}))
    publish(other_plan, other_plan.to_train[0])
    assert by_id(plan_of(job))["rex"].identifier != taken


def test_a_common_word_as_identifier_gives_a_warning(tmp_path, tiny_base, job):
    file = tmp_path / "named.jsonl"
    image = str(tmp_path / "photos" / "rex" / "0.png")
    row = {"id": "rex", "class_noun": "dog", "images": [image], "identifier": "beach"}
    file.write_text(json.dumps(row))
    plan = plan_of(job.model_copy(update={"subjects": str(file)}))
    assert any("beach" in warning.what for warning in plan.warnings)
    assert by_id(plan)["rex"].identifier == "beach"


def test_user_settings_override_those_of_the_bases_makers(base):
    recommending = bases.Base(
        base.name, base.folder, base.digest, {"recipe": {"steps": 77, "learning_rate": 1e-4}}
    )
    job = Job(base="x", subjects="y", recipe=Recipe(learning_rate=5e-6))
    resolved, _ = resolve_job(job, recommending)
    assert (resolved.recipe.steps, resolved.recipe.learning_rate) == (77, 5e-6)
    assert resolved.recipe.resolution == 32


@pytest.mark.parametrize("error", [SubjectError("no image"), LaneLost("killed")])
def test_subjects_that_would_fail_again_are_skipped_by_default(job, error):
    tom = next(one for one in plan_of(job).to_train if one.subject.id == "tom")
    failed = Outcome(
        id="tom", class_noun="cat", status="failed", revision=tom.revision, error=Failure.of(error)
    )
    Store(job.storage).write_bytes(
        f"jobs/{job.id}/{RESULTS_FILE}", failed.model_dump_json().encode()
    )
    plan = plan_of(job)
    assert dict(plan.failed) == ({} if error.retryable else {"tom": failed})
    assert (tom in plan.to_train) == error.retryable
    nouns = ["dog"] if plan.failed else ["cat", "dog"]
    assert [prior.class_noun for prior in plan.missing_priors] == nouns
    assert tom in plan_of(job, retry_failed=True).to_train
    (Path(str(job.subjects)) / "tom" / "0.png").unlink()  # another revision now
    assert not plan_of(job).failed


def test_the_cost_is_estimated(tmp_path, tiny_base, base):
    plan = plan_of(load_job(tmp_path, tiny_base, SUBJECTS, recipe={"resolution": 64}))
    rates = Rates(step_seconds=0.5, overhead_seconds=1.0, prior_images_per_second=4.0)
    cost = estimate(plan, Hardware(num_cpus=2, num_gpus=0), rates)
    assert cost.lanes == 1  # the job says so
    assert cost.train_steps == 3 * 8
    assert cost.train_seconds == pytest.approx(3 * (1.0 + 8 * 0.5))
    assert cost.prior_seconds == pytest.approx(12 / 4.0)
    assert cost.model_bytes == 2 * base.num_parameters("unet")
    # Class images have the base's own 32 px; previews and latents the resolution of training.
    assert cost.storage_bytes == {
        "weights": 3 * 2 * base.num_parameters("unet"),
        "class images": 2 * 6 * (3 * 32 * 32 + 2 * 4 * (4 * 16 * 16)),
        "previews": 3 * 2 * 2 * (3 * 64 * 64),
    }
    assert estimate(plan, Hardware(2, 0), None).train_seconds is None
    without_rate = estimate(
        plan, Hardware(2, 0), rates.model_copy(update={"prior_images_per_second": None})
    )
    assert without_rate.prior_seconds is None


def publish_named(job, base, identifier, **changes):
    """Publish rex with a given identifier."""
    image = str(Path(str(job.subjects)) / "rex" / "0.png")
    row = {"id": "rex", "class_noun": "dog", "images": [image], "identifier": identifier}
    file = Path(job.storage).parent / "named.jsonl"
    file.write_text(json.dumps(row))
    plan = plan_of(job.model_copy(update={"subjects": str(file)}))
    publish(replace(plan, base=replace(base, **changes)), plan.to_train[0])


def test_a_bad_identifier_is_not_kept(job, base):
    publish_named(job, base, "sks")
    assert by_id(plan_of(job))["rex"].identifier != "sks"


@pytest.mark.parametrize(("other", "stays"), [({}, True), ({"digest": "0" * 64}, False)])
def test_a_good_identifier_is_kept_on_its_own_base(job, base, other, stays):
    drawn = by_id(plan_of(job))
    good = drawn["tom"].identifier
    publish_named(job, base, good, **other)
    now = by_id(plan_of(job))["rex"].identifier
    assert now == (good if stays else drawn["rex"].identifier)


@pytest.mark.parametrize(
    ("cpus", "gpus", "lanes"), [(2, 0, 1), (8, 0, 3), (8, 1, 0), (8, 4, 2), (1, 0, 0)]
)
def test_lanes_fill_the_cluster(tmp_path, tiny_base, cpus, gpus, lanes):
    job = load_job(tmp_path, tiny_base, SUBJECTS, resources={"lanes": None, "gpus_per_subject": 2})
    assert num_lanes(plan_of(job), Hardware(cpus, gpus)) == lanes


@pytest.mark.parametrize(
    ("device", "cpus", "gpus", "lanes", "actors"),
    [
        ("auto", 8, 1, 1, 1),
        ("cpu", 8, 1, 2, 2),
        ("cuda", 8, 1, 1, 1),
        ("cuda", 8, 0, 0, 1),
        ("auto", 3, 1, 0, 1),  # a GPU for a lane, but too few CPUs
        ("auto", 8, 3, 2, 3),
    ],
)
def test_lanes_and_actors_are_counted_for_the_given_device(
    tmp_path, tiny_base, device, cpus, gpus, lanes, actors
):
    asked = {"device": device, "lanes": None, "prior_actors": None, "threads_per_worker": 4}
    plan = plan_of(load_job(tmp_path, tiny_base, SUBJECTS, resources=asked))
    assert num_lanes(plan, Hardware(cpus, gpus)) == lanes
    assert num_prior_actors(plan, Hardware(cpus, gpus)) == actors


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_the_error_without_a_gpu_explains_how_to_wait_for_one(device):
    problem = too_small(Resources(device=device), Hardware(num_cpus=0, num_gpus=0))
    assert ("with 1 GPU and 1 CPU(s) each" in problem.what) == (device == "cuda")
    assert "holds 0 GPU(s) and 0 CPU(s)" in problem.what
    assert "set lanes, and device: cuda" in problem.fix


def test_the_id_of_another_tenant_is_rejected(job):
    ours = job.model_copy(update={"tenant": "acme"})
    plan = plan_of(ours)
    publish(plan, by_id(plan)["rex"])
    assert [one.subject.id for one in plan_of(ours).kept] == ["rex"]
    for stranger in (None, "zeta"):
        with pytest.raises(SpecError, match="subject rex: its id is another tenant's"):
            plan_of(job.model_copy(update={"tenant": stranger}))


def test_a_given_number_of_lanes_is_used(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS, resources={"lanes": 2, "gpus_per_subject": 2})
    assert num_lanes(plan_of(job), Hardware(num_cpus=1, num_gpus=0)) == 2
    problem = str(too_small(job.resources, Hardware(num_cpus=1, num_gpus=0)))
    assert "2 worker(s)" in problem
    assert "gpus_per_subject" in problem


def test_rates_come_from_the_last_job_on_the_same_base(tmp_path, tiny_base):
    asked = plan_of(load_job(tmp_path, tiny_base, SUBJECTS))
    store = Store(asked.job.storage)
    for name, base_digest, ended in (("a", "x", "1"), ("b", "x", "2"), ("c", "y", "3")):
        Journal(store, name).begin(asked, "0")
        rates = {"step_seconds": float(ended), "overhead_seconds": 0.0}
        summary = {"base_digest": base_digest, "updated_at": ended, "rates": rates}
        store.write_json(f"jobs/{name}/summary.json", summary)
    latest = Rates(step_seconds=2.0, overhead_seconds=0.0)
    assert latest_rates(store, "x", asked.job) == latest
    assert latest_rates(store, "z", asked.job) is None


def test_rates_of_an_old_job_without_a_device_are_used(tmp_path, tiny_base, base):
    asked = plan_of(load_job(tmp_path, tiny_base, SUBJECTS))
    store = Store(asked.job.storage)
    Journal(store, "ran").begin(asked, "0")
    written = store.read_json("jobs/ran/job.json")
    del written["job"]["resources"]["device"]
    store.write_json("jobs/ran/job.json", written)
    rates = Rates(step_seconds=2.0, overhead_seconds=0.0)
    summary = {"base_digest": base.digest, "updated_at": "1", "rates": rates.model_dump()}
    store.write_json("jobs/ran/summary.json", summary)
    assert latest_rates(store, base.digest, asked.job) == rates


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({}, True),
        ({"recipe": {"steps": 9, "seed": 3}, "previews": {"steps": 9}}, True),
        ({"recipe": {"resolution": 64}}, False),
        ({"recipe": {"batch_size": 2}}, False),
        ({"recipe": {"method": "lora"}}, False),
        ({"prior": {"steps": 9}}, False),
        ({"resources": {"threads_per_worker": 2}}, False),
        ({"resources": {"device": "cuda"}}, False),
    ],
)
def test_rates_of_a_job_of_other_speed_are_not_used(tmp_path, tiny_base, base, change, counts):
    ran = plan_of(load_job(tmp_path, tiny_base, SUBJECTS))
    store = Store(ran.job.storage)
    Journal(store, "ran").begin(ran, "0")
    rates = Rates(step_seconds=2.0, overhead_seconds=0.0)
    summary = {"base_digest": base.digest, "updated_at": "1", "rates": rates.model_dump()}
    store.write_json("jobs/ran/summary.json", summary)
    asked = plan_of(load_job(tmp_path, tiny_base, SUBJECTS, **change))
    assert latest_rates(store, base.digest, asked.job) == (rates if counts else None)
    store.write_json("jobs/ran/job.json", {})
    assert latest_rates(store, base.digest, asked.job) is None


def test_hardware_without_room_for_a_lane_gives_a_warning(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS, resources={"lanes": None, "gpus_per_subject": 2})
    plan, rates = plan_of(job), Rates(step_seconds=1.0, overhead_seconds=1.0)
    cost = estimate(plan, Hardware(num_cpus=1, num_gpus=0), rates)
    [warning] = cost.warnings
    assert (warning.severity, cost.lanes, cost.train_seconds) == ("warning", 0, None)
    assert "gpus_per_subject" in warning.fix
    assert estimate(plan, Hardware(num_cpus=2, num_gpus=0), rates).warnings == ()
    nothing_left = replace(plan, published=frozenset(SUBJECTS), missing_priors=())
    assert estimate(nothing_left, Hardware(1, 0), rates).warnings == ()


def test_many_subjects_get_identifiers_of_several_tokens(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, {"rex": "dog"})
    image = tmp_path / "photos" / "rex" / "0.png"
    rows = [{"id": f"s{i}", "class_noun": "dog", "images": [str(image)]} for i in range(2000)]
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job.model_copy(update={"subjects": str(file)})
    names = {one.identifier for one in plan_of(job).to_train}
    assert len(names) == 2000
    assert {len(name.split()) for name in names} == {2}
    one_token = job.identifiers.model_copy(update={"num_tokens": 1})
    with pytest.raises(SpecError, match="num_tokens"):
        plan_of(job.model_copy(update={"identifiers": one_token}))
