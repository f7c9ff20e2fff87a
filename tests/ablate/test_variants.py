"""What each ablation varies, and that it varies nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit.worlds import write_job

from dbray.ablate.ablation import with_own_subjects
from dbray.ablate.trials import trials_of
from dbray.ablate.variants import ABLATIONS
from dbray.bases import MINIATURE_FOLDER
from dbray.errors import SpecError
from dbray.planning.checks import check_file, check_job

CASCADE = MINIATURE_FOLDER.with_name("cascade")
USUAL = 250
"""The noise level of DeepFloyd IF II's pipeline."""
NOUNS = {"rex": "dog", "tom": "cat", "bix": "clock"}


@pytest.fixture(scope="module")
def ready(tiny_base, tmp_path_factory):
    file = write_job(tmp_path_factory.mktemp("world"), tiny_base, NOUNS)
    return with_own_subjects(check_file(file).ready())


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """A job on a base of two stages."""
    file = write_job(tmp_path_factory.mktemp("world"), CASCADE, NOUNS)
    return with_own_subjects(check_file(file).ready())


def jobs(name, ready):
    return {one.name: one.job for one in ABLATIONS[name].variants(ready)}


def changed(job, ready):
    """Return the sections of a job that differ."""
    return {name for name in type(job).model_fields
            if getattr(job, name) != getattr(ready.job, name)}  # fmt: skip


@pytest.fixture(params=["ready", "cascade"])
def each(request):
    return request.getfixturevalue(request.param)


def ablations_of(ready):
    """Return the ablations that a job can take part in."""
    alone = {} if ready.job.super_resolution else {"detail"}
    return {name: one for name, one in ABLATIONS.items() if name not in alone}


def test_every_variant_is_a_valid_job(each):
    for name, ablation in ablations_of(each).items():
        variants = ablation.variants(each)
        for trial in trials_of(name, each, variants, (0, 1), each.job.storage):
            assert check_job(trial.job).errors == []


def test_the_first_variant_is_the_job_itself(each):
    for ablation in ablations_of(each).values():
        first = ablation.variants(each)[0].job
        assert first is not None
        assert changed(first, each) == set()


def test_trials_have_ids_of_their_own_and_differ_in_seed(each):
    trials = [one for name, ablation in ablations_of(each).items()
              for one in trials_of(name, each, ablation.variants(each), (0, 7), "s")]  # fmt: skip
    assert len({one.job.id for one in trials}) == len(trials)
    assert all(one.job.recipe.seed == one.seed for one in trials)
    assert {one.job.storage for one in trials} == {"s"}


def test_the_prior_is_images_none_or_the_teacher(ready):
    found = jobs("prior", ready)
    assert changed(found["none"], ready) == {"recipe"}
    assert found["none"].recipe.prior_weight == 0
    assert changed(found["teacher"], ready) == {"prior"}
    assert found["teacher"].prior.kind == "teacher"
    assert found["teacher"].prior.prompt == ready.job.prior.prompt


def test_a_wrong_noun_is_never_the_right_one(ready):
    found = jobs("noun", ready)
    for wrong, right in zip(found["wrong"].subjects, ready.job.subjects, strict=True):
        assert wrong.true_class_noun == right.class_noun
        assert wrong.class_noun in set(NOUNS.values()) - {right.class_noun}
        assert wrong.images == right.images
    assert {one.class_noun for one in found["none"].subjects} == {"none"}


def test_one_noun_alone_takes_a_wrong_one_from_those_the_base_knows(tiny_base, tmp_path):
    file = write_job(tmp_path, tiny_base, {"rex": "dog"})
    [wrong] = jobs("noun", with_own_subjects(check_file(file).ready()))["wrong"].subjects
    assert wrong.class_noun != "dog"


def test_photographs_become_fewer(ready):
    found = jobs("photographs", ready)
    assert list(found) == ["3", "2", "1"]
    for count, job in found.items():
        for fewer, own in zip(job.subjects, ready.job.subjects, strict=True):
            assert fewer.images == own.images[: int(count)]


def test_a_single_photograph_cannot_be_varied(tiny_base, tmp_path):
    from kit.worlds import write_photos

    write_photos(tmp_path / "photos", {"rex": "dog"}, num_images=1)
    file = write_job(tmp_path, tiny_base, {"rex": "dog"})
    with pytest.raises(SpecError, match="subject rex: has one photograph"):
        jobs("photographs", with_own_subjects(check_file(file).ready()))


def test_identifiers_are_rare_common_or_random(ready):
    found = jobs("identifier", ready)
    assert {one.identifier for one in found["rare token"].subjects} == {None}
    words = [one.identifier for one in found["common word"].subjects]
    characters = [one.identifier for one in found["random characters"].subjects]
    assert len(set(words)) == len(set(characters)) == 3
    assert {len(one) for one in characters} == {9}


def test_rates_and_steps_are_multiples_of_the_jobs(ready):
    recipe = ready.job.recipe
    rates = [
        job.recipe.learning_rate / recipe.learning_rate for job in jobs("rate", ready).values()
    ]
    assert rates == [1.0, 0.25, 4.0]
    assert [job.recipe.steps for job in jobs("steps", ready).values()] == [8, 2, 4, 16]


def test_another_method_has_the_rate_that_suits_it(ready):
    found = jobs("method", ready)
    assert found["DreamBooth"].recipe == ready.job.recipe
    inversion = check_job(found["textual inversion"]).ready().job.recipe
    assert inversion.method.kind == "textual_inversion"
    assert inversion.learning_rate != ready.job.recipe.learning_rate
    assert inversion.steps == 8


def test_super_resolution_has_low_or_usual_noise_or_stays_as_it_is(cascade):
    found = jobs("detail", cascade)
    levels = {name: (job.super_resolution.train, job.super_resolution.noise_level)
              for name, job in found.items()}  # fmt: skip
    assert levels == {"low noise": (True, 0), "usual noise": (True, USUAL),
                      "not fine-tuned": (False, USUAL)}  # fmt: skip
    assert all(changed(job, cascade) <= {"super_resolution"} for job in found.values())


@pytest.mark.parametrize(("stage", "problem"), [
    (None, "no second stage is fine-tuned"),
    ({"train": False}, "no second stage is fine-tuned"),
    ({"noise_level": USUAL}, f"noise_level {USUAL} is not below the usual"),
])  # fmt: skip
def test_there_must_be_a_second_stage_at_low_noise(cascade, stage, problem):
    own = cascade.job.super_resolution
    changed_stage = stage and own.model_copy(update=stage)
    job = cascade.job.model_copy(update={"super_resolution": changed_stage})
    with pytest.raises(SpecError, match=problem):
        jobs("detail", replace(cascade, job=job))


def test_descriptions_are_a_variant_where_every_subject_has_one(tiny_base, tmp_path):
    file = write_job(tmp_path, tiny_base, {"rex": "dog", "tom": "cat"})
    (tmp_path / "photos" / "rex" / "description.txt").write_text("brown dog\nwith a patch")
    ready = with_own_subjects(check_file(file).ready())
    assert ready.job.subjects[0].description == "brown dog with a patch"
    assert "description" not in jobs("method", ready)
    (tmp_path / "photos" / "tom" / "description.txt").write_text("grey cat")
    described = jobs("method", with_own_subjects(check_file(file).ready()))
    assert described["description"] is None
