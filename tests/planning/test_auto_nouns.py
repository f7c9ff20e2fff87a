"""class_noun: auto: a CLIP chooses among the known nouns, and asks where it is not certain."""

from __future__ import annotations

import subprocess
import sys

import pytest
from kit.embedders import build_clip, build_dino
from kit.worlds import write_job
from safetensors.torch import load_file, save_file

from dbray import bases
from dbray.planning.auto_nouns import MIN_SHARE
from dbray.planning.checks import check_file
from dbray.planning.known_nouns import KNOWN_NOUNS, nouns_of
from dbray.planning.plan import make_plan
from dbray.storage.store import Store

SUBJECTS = {"rex": "auto", "tom": "cat"}


@pytest.fixture(scope="module")
def certain_clip(tmp_path_factory):
    """A random CLIP that is certain of whatever it is nearest to."""
    folder = build_clip(tmp_path_factory.mktemp("certain") / "clip")
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] += 20
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def unsure_clip(tmp_path_factory):
    """A random CLIP to which all nouns are much alike."""
    return build_clip(tmp_path_factory.mktemp("unsure") / "clip")


def test_the_chosen_noun_is_planned_as_if_it_were_written(certain_clip, tiny_base, tmp_path):
    scoring = {"clip": str(certain_clip)}
    file = write_job(tmp_path, tiny_base, SUBJECTS, scoring=scoring)
    ready = check_file(file).ready()
    chosen = ready.chosen_nouns["rex"]
    assert chosen.noun in KNOWN_NOUNS
    assert chosen.share > MIN_SHARE
    planned = make_plan(ready, Store(ready.job.storage)).subjects
    assert [one.subject.class_noun for one in planned] == [chosen.noun, "cat"]

    (tmp_path / "photos" / "rex" / "class.txt").write_text(chosen.noun)
    written = check_file(write_job(tmp_path, tiny_base, SUBJECTS)).ready()
    assert written.chosen_nouns == {}
    again = make_plan(written, Store(written.job.storage)).subjects
    assert [one.fingerprint for one in again] == [one.fingerprint for one in planned]


def test_where_it_is_not_certain_the_user_is_asked(unsure_clip, tiny_base, tmp_path):
    file = write_job(tmp_path, tiny_base, SUBJECTS, scoring={"clip": str(unsure_clip)})
    checked = check_file(file)
    [error] = checked.errors
    assert error.subject == "rex"
    assert error.what.count("%") == 3
    assert "write the class noun" in error.fix
    assert [one.subject.id for one in checked.ready(skip_invalid=True).subjects] == ["tom"]


def test_without_a_clip_the_error_names_the_key(tiny_base, tmp_path):
    [error] = check_file(write_job(tmp_path, tiny_base, SUBJECTS)).errors
    assert "class_noun: auto of 1 subject(s): no CLIP is named" in error.what
    assert "scoring.clip" in error.fix


def test_an_embedder_without_texts_is_not_a_clip(tiny_base, tmp_path):
    folder = build_dino(tmp_path / "dino")
    file = write_job(tmp_path, tiny_base, SUBJECTS, scoring={"clip": str(folder)})
    [error] = check_file(file).errors
    assert "is not a CLIP" in error.what


def test_a_clip_that_nothing_reads_is_still_reported(certain_clip, tiny_base, tmp_path):
    subjects = {"tom": "cat"}
    file = write_job(tmp_path, tiny_base, subjects, scoring={"clip": str(certain_clip)})
    [error] = check_file(file).errors
    assert "names a clip but no embedder" in error.what


def test_scores_that_the_base_recommends_can_be_switched_off(tmp_path):
    file = write_job(tmp_path, "miniature", {"tom": "cat"}, scoring={"embedder": None})
    checked = check_file(file)
    assert checked.errors == []
    assert checked.job.scoring.embedder is None


def test_a_base_may_list_its_nouns():
    miniature = bases.resolve("miniature")
    assert "dog" in nouns_of(miniature)
    assert len(nouns_of(miniature)) == 16
    assert len(KNOWN_NOUNS) == len(set(KNOWN_NOUNS)) > 150


def test_the_miniature_lists_what_its_world_draws():
    from dbray.miniature.world import CLASS_NOUNS

    assert nouns_of(bases.resolve("miniature")) == CLASS_NOUNS


def test_without_auto_no_torch_is_loaded(tiny_base, tmp_path):
    file = write_job(tmp_path, tiny_base, {"tom": "cat"})
    code = (
        "import sys; from dbray.cli import main; code = main(['validate', sys.argv[1]]); "
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
