"""The examples: one complete job for each family, which `validate` accepts once it has a base."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kit.bases import build_tiny_base
from kit.families import FAMILIES
from kit.worlds import write_photos

from dbray.errors import SpecError
from dbray.planning.checks import check_file
from dbray.spec.job import Job

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = ("stable_diffusion", *FAMILIES)


def test_every_family_has_one():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_placeholder_is_explained(name):
    with pytest.raises(SpecError) as caught:
        Job.load(FOLDER / f"{name}.yaml")
    [problem] = caught.value.problems
    assert "base_revision" in problem.fix
    assert "the 40 hex digits of a commit" in problem.what
    assert "'Files and versions', 'History'" in problem.what
    assert problem.where.endswith(f"{name}.yaml:5")


@pytest.mark.parametrize("name", NAMES)
def test_the_job_is_valid_for_a_base_of_its_family(tmp_path, name):
    job = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    build = FAMILIES[name].build if name in FAMILIES else build_tiny_base
    del job["base_revision"]
    job["recipe"].pop("resolution", None)  # more than a tiny base has
    write_photos(tmp_path / "photos", {"rex": "dog"})
    images = [f"photos/rex/{number}.png" for number in range(3)]
    # Some tiny vocabularies have no rare tokens to choose from.
    rex = {"id": "rex", "class_noun": "dog", "identifier": "zb", "images": images}
    job |= {"base": str(build(tmp_path / "base")), "subjects": [rex]}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    checked = check_file(file)
    assert checked.errors == []
    assert checked.job.recipe.learning_rate == job["recipe"]["learning_rate"]


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_pinned_names_of_the_hub(name):
    job = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert job["base"].count("/") == 1
    assert job["base_revision"] == "COMMIT"
