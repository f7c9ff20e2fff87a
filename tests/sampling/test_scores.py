"""Scores of published weights and of the base, and models that cannot be scored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit import records
from kit.embedders import BUILDERS
from kit.scores import scores as scores_with
from safetensors.torch import load_file, save

from dbray import bases
from dbray.records import scores as layout
from dbray.records.models import Registry
from dbray.sampling.pool import Result, SamplingPool
from dbray.sampling.scores import (
    ScoreJoining,
    describe,
    make_scores,
    measure_of,
)
from dbray.scores.flags import flags_of
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews, Scoring
from dbray.spec.subject import Subject
from dbray.storage.store import Store
from dbray.subjects.images import encode_png

NOUNS = {"rex": "dog", "same": "dog", "tom": "cat", "rot": "dog"}


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedders")
    scoring = Scoring(
        embedder=str(BUILDERS["vit"](folder / "vit")),
        clip=str(BUILDERS["clip"](folder / "clip")),
        prompts=("a photo of a {subject} on the beach", "a {subject}"),
        class_prompts=("a {class}", "a car"),
        images=2,
    )
    found = measure_of(scoring, Previews(steps=2, guidance=2.0))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def published(tiny_base, tmp_path_factory):
    """Four models, of which `same` has the base's own weights, and `rot` is damaged."""
    base = bases.resolve(str(tiny_base))
    store = Store(str(tmp_path_factory.mktemp("storage")))
    photos = tmp_path_factory.mktemp("photos")
    [file] = (base.folder / "unet").glob("*.safetensors")
    found, subjects = [], []
    for seed, (name, noun) in enumerate(NOUNS.items()):
        record = records.record(
            name, class_noun=noun, identifier="zb", base=base.name, base_digest=base.digest,
            recipe=Recipe(resolution=32, publish_precision="fp32"),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        shake = 0.0 if name == "same" else 0.05
        weights = {
            key: value + shake * torch.randn(value.shape, generator=generator)
            for key, value in load_file(file).items()
        }
        Registry(store).publish(record, {"unet.safetensors": save(weights)})
        pixels = np.random.default_rng(seed).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
        names = [photos / f"{name}-{number}.png" for number in range(3)]
        for path, image in zip(names, pixels, strict=True):
            path.write_bytes(encode_png(image))
        found.append(record)
        subjects.append(Subject(id=name, class_noun=noun, images=tuple(map(str, names))))
    rotten = store.local_path(f"models/rot/{found[3].revision}/unet.safetensors")
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"x")
    return base, store, found, subjects


@pytest.fixture(scope="module")
def scored(published, measure, ray_session):
    base, store, found, subjects = published
    progress = []
    failures = make_scores(
        store, base, found, subjects, measure, SamplingPool(num_actors=1),
        on_progress=lambda *one: progress.append(one),
    )  # fmt: skip
    return failures, progress, {one.id: layout.read(store, one.name) for one in found}


def test_a_damaged_model_is_reported_and_the_others_are_scored(scored):
    failures, progress, scores = scored
    [(name, reason)] = failures
    assert name == "rot"
    assert "is not what was published" in reason
    assert scores["rot"] is None
    assert all(scores[name] for name in ("rex", "same", "tom"))
    assert progress[-1] == (4, 4)


def test_a_model_with_the_weights_of_the_base_has_drift_0(scored):
    _, _, scores = scored
    same, rex = scores["same"], scores["rex"]
    assert same.drift == pytest.approx(0.0, abs=1e-6)
    assert same.unrelated_drift == pytest.approx(0.0, abs=1e-6)
    assert same.preservation == pytest.approx(same.base_preservation, abs=1e-6)
    assert rex.drift > 1e-4
    assert rex.unrelated_drift > 1e-5


def test_a_clip_scores_prompts_and_photographs(scored):
    _, _, scores = scored
    same, rex = scores["same"], scores["rex"]
    assert 0 < rex.clip_ceiling <= 1
    assert rex.clip_identity != rex.identity
    assert same.base_prompt is not None
    assert rex.prompt != rex.base_prompt
    assert 0 <= rex.followed <= 1


def test_the_annex_has_the_flags():
    planted = scores_with(copies=1.0)
    stored = json.loads(layout.files_of(planted, {})[layout.FIGURES])
    [flag] = flags_of(planted)
    assert stored["flags"] == [flag._asdict()]


def test_look_alikes_are_the_other_subjects_of_the_class_noun(scored):
    _, _, scores = scored
    assert scores["rex"].num_lookalikes == 2
    assert scores["tom"].num_lookalikes == 0
    assert scores["tom"].nearest == scores["tom"].precision == 1.0


def test_the_request_describes_the_measurement(published, scored, measure):
    _, store, found, _ = published
    record = found[0]
    request = describe(measure, record.class_noun, record.identifier)
    assert layout.annex(store, record.name).has(request)
    [text] = request.values()
    assert json.loads(text)["prompts"] == ["a photo of a zb dog on the beach", "a zb dog"]
    other = replace(measure, scoring=measure.scoring.model_copy(update={"seed": 1}))
    changed = describe(other, record.class_noun, record.identifier)
    assert not layout.annex(store, record.name).has(changed)


def test_results_may_arrive_in_any_order(published, scored, measure, monkeypatch):
    base, store, found, subjects = published
    before = {one.id: layout.read(store, one.name) for one in found[:2]}
    for record in found[:2]:
        store.remove(f"models/{record.id}/{record.revision}/scores")

    def backwards(actor, actor_args, tasks, pool):
        made = actor(*actor_args)
        results = [Result(index, made.make(task)) for index, task in enumerate(tasks)]
        yield from reversed(results)

    monkeypatch.setattr("dbray.sampling.joining.sample", backwards)
    assert make_scores(store, base, found[:2], subjects, measure, SamplingPool(num_actors=1)) == []
    after = {one.id: layout.read(store, one.name) for one in found[:2]}
    assert sorted(after) == ["rex", "same"]
    for name, scores in after.items():
        assert scores.model_dump() == pytest.approx(before[name].model_dump(), abs=1e-6)


def test_a_model_is_compared_with_a_limited_number_of_look_alikes(published, measure, monkeypatch):
    _, store, found, subjects = published
    many = [one.model_copy(update={"id": f"dog{n}"}) for n, one in enumerate([subjects[0]] * 9)]
    monkeypatch.setattr("dbray.sampling.scores.MAX_LOOKALIKES", 4)
    joining = ScoreJoining(store, measure, found[:1], [subjects[0], *many, subjects[2]])
    of_base, *photographs = joining.needed(0)
    assert len(set(photographs)) == len(photographs) == 5
    assert of_base not in photographs


def test_only_photographs_that_a_model_is_compared_with_are_embedded(
    published, measure, monkeypatch
):
    base, store, found, subjects = published
    many = [one.model_copy(update={"id": f"dog{n}"}) for n, one in enumerate([subjects[0]] * 9)]
    tasks = []

    def sample(actor, actor_args, given, pool):
        tasks.extend(given)
        yield from ()

    monkeypatch.setattr("dbray.sampling.scores.MAX_LOOKALIKES", 2)
    monkeypatch.setattr("dbray.sampling.joining.sample", sample)
    make_scores(store, base, found[:1], [*subjects, *many], measure, SamplingPool(num_actors=1))
    assert sum("photographs" in task for task in tasks) == 3


def test_without_an_embedder_nothing_is_scored():
    assert measure_of(Scoring(), Previews()) is None
