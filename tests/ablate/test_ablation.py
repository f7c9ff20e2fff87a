"""Whole ablations on the tiny base: trained, scored, continued, and shown."""

from __future__ import annotations

import io
import json

import pytest
from kit.embedders import BUILDERS
from kit.worlds import write_job
from PIL import Image

from dbray.ablate import descriptions
from dbray.ablate.ablation import Request, ablate
from dbray.ablate.sheet import CELL
from dbray.errors import SpecError
from dbray.planning.checks import check_file
from dbray.run.options import RunOptions
from dbray.run.watch import Silence
from dbray.sampling.joining import base_task
from dbray.sampling.pool import Result
from dbray.sampling.previews import PreviewActor
from dbray.sampling.scores import measure_of
from dbray.storage.store import Store

NOUNS = {"rex": "dog", "tom": "cat"}
PROMPTS = {"prompts": ["a photo of a {subject} on the beach"], "class_prompts": ["a {class}"]}


class Phases(Silence):
    """Remembers which phases had work."""

    def __init__(self):
        self.names = set()

    def progress(self, phase, done, total, detail=""):
        self.names.add(phase)


@pytest.fixture(scope="module")
def job(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    embedders = {"embedder": str(BUILDERS["vit"](folder / "vit")),
                 "clip": str(BUILDERS["clip"](folder / "clip"))}  # fmt: skip
    file = write_job(
        folder, tiny_base, NOUNS, recipe={"steps": 2}, prior={"count": 2},
        scoring={**embedders, **PROMPTS, "images": 2},
    )  # fmt: skip
    for name in NOUNS:
        (folder / "photos" / name / "description.txt").write_text(f"a spotted {NOUNS[name]}")
    return check_file(file).ready()


def carry_out(name, job, folder, **fields):
    watch = Phases()
    found = ablate(Request(name, job, folder, **fields), RunOptions(), watch)
    return found, watch.names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_ablation_is_trained_scored_and_continued(job, ray_session, tmp_path):
    found, phases = carry_out("photographs", job, tmp_path, seeds=(0, 1))
    assert {"class images", "training", "scores"} <= phases
    assert found.num_missing == 0
    assert [one.name for one in found.results.variants] == ["3", "2", "1"]
    scored = found.results.scored
    assert len(scored) == len({one.model for one in scored}) == 3 * 2 * len(NOUNS)
    # All are compared with all three photographs, the one that saw one of them too.
    assert len({one.scores.ceiling for one in scored if one.subject == "rex"}) == 1
    assert scored[0].scores.ceiling < 1

    again, phases = carry_out("photographs", job, tmp_path, seeds=(0, 1))
    assert phases == set()
    assert again.results.json() == found.results.json()

    # The first variant of another ablation is the same, and so are the class images.
    _, phases = carry_out("steps", job, tmp_path, num_subjects=1)
    assert "class images" not in phases
    written = json.loads((tmp_path / "steps" / "ablation.json").read_text())
    assert written["subjects"] == ["rex"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_descriptions_are_scored_beside_the_methods(job, ray_session, tmp_path):
    found, _ = carry_out("method", job, tmp_path, num_subjects=1)
    [described] = [one for one in found.results.scored if one.variant == "description"]
    assert described.model is None
    assert described.scores.identity != described.scores.base_identity
    assert found.results.lines()[3].against_first["identity"].num_subjects == 1
    *_, sheet = found.files
    # Photographs, base and four variants; two prompts.
    image = Image.open(io.BytesIO(sheet.read_bytes()))
    assert image.height - 6 * CELL == 62
    lowest = image.crop((image.width - CELL, image.height - CELL, image.width, image.height))
    assert lowest.getcolors(4) is None


def test_class_images_of_a_description_are_those_of_the_base(
    job, ray_session, tmp_path, monkeypatch
):
    def here(actor, actor_args, tasks, pool):
        made = actor(*actor_args)
        for index, task in enumerate(tasks):
            yield Result(index, made.make(task))

    monkeypatch.setattr(descriptions, "sample", here)
    store, measure = Store(str(tmp_path)), measure_of(job.job.scoring, job.job.previews)
    found = descriptions.score_descriptions(store, job, measure, job.job.previews, Silence())
    [rex, _] = descriptions.scored_of("description", found)
    assert rex.scores.drift == pytest.approx(0.0, abs=1e-6)
    assert rex.scores.preservation == rex.scores.base_preservation
    assert rex.scores.identity != rex.scores.base_identity
    previews = PreviewActor(job.base, 1, store, job.job.previews)
    of_base = previews.make(base_task("dog", job.job.recipe, None))
    assert job.job.previews.prompts[1] == "a {class}"
    assert [of_base[name] == found["rex"][name] for name in ("base-0.png", "base-1.png")] == [
        False, True,
    ]  # fmt: skip


def test_without_an_embedder_nothing_is_trained(tiny_base, tmp_path):
    ready = check_file(write_job(tmp_path, tiny_base, NOUNS)).ready()
    with pytest.raises(SpecError, match="names no embedder"):
        carry_out("prior", ready, tmp_path / "out")
    assert not (tmp_path / "out").exists()
