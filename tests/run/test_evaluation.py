"""Evaluating a registry: files per image and model, continuing, and what cannot be evaluated."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kit import records
from kit.embedders import BUILDERS, build_clip_base, build_dinov2_small
from safetensors.torch import load_file, save

from dbray import bases
from dbray.cli import _parser, main
from dbray.records.models import Registry
from dbray.run.evaluation import find_target
from dbray.spec.recipe import Recipe
from dbray.storage.store import Store
from dbray.subjects.images import encode_png

NOUNS = {"rex": "dog", "fido": "dog", "vase": "vase"}
PROMPTS = """
Object Prompts
prompt_list = [
'a {0} {1} on a mirror'.format(unique_token, class_token),
]
Live Subject Prompts
prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


@pytest.fixture(scope="module")
def place(tiny_base, tmp_path_factory):
    """A registry of three models with photographs, and one whose photographs are not known."""
    folder = tmp_path_factory.mktemp("place")
    base = bases.resolve(str(tiny_base))
    store = Store(str(folder / "runs"))
    [file] = (base.folder / "unet").glob("*.safetensors")
    rows = []
    for seed, (name, noun) in enumerate({**NOUNS, "lost": "cat"}.items()):
        generator = torch.Generator().manual_seed(seed)
        weights = {
            key: value + 0.05 * torch.randn(value.shape, generator=generator)
            for key, value in load_file(file).items()
        }
        record = records.record(
            name, class_noun=noun, identifier="zb", base=base.name, base_digest=base.digest,
            recipe=Recipe(resolution=32, publish_precision="fp32"),
            job_id="gone" if name == "lost" else "job",
        )  # fmt: skip
        Registry(store).publish(record, {"unet.safetensors": save(weights)})
        pixels = np.random.default_rng(seed).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
        names = [folder / f"{name}-{number}.png" for number in range(3)]
        for path, image in zip(names, pixels, strict=True):
            path.write_bytes(encode_png(image))
        rows.append({"id": name, "class_noun": noun, "images": [str(path) for path in names]})
    store.write_json("jobs/job/job.json", {"subjects": rows[:3]})
    (folder / "prompts.txt").write_text(PROMPTS)
    for kind in ("dinov2", "clip"):
        BUILDERS[kind](folder / kind)
    return folder


def evaluate(place, *arguments: str) -> int:
    return main([
        "evaluate", str(place / "runs"), "-o", str(place / "out"), "--images", "2",
        "--prompts", str(place / "prompts.txt"), "--embedder", str(place / "dinov2"),
        "--clip", str(place / "clip"), "--steps", "2", "--guidance", "2", *arguments,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(place, ray_session):
    assert evaluate(place) == 3  # one has no photographs
    return place / "out"


def table_of(evaluated, name):
    [file] = (evaluated / "images").glob(f"{name}@*.parquet")
    return pq.read_table(file).to_pylist()


def test_each_image_has_its_figures_and_is_kept(evaluated):
    rows = table_of(evaluated, "rex")
    assert [row["prompt"] for row in rows] == ["a zb dog in the snow"] * 2 + ["a wet zb dog"] * 2
    assert [row["prompt"] for row in table_of(evaluated, "vase")] == ["a zb vase on a mirror"] * 2
    assert rows[0]["seed"] == rows[2]["seed"] != rows[1]["seed"]
    assert all(row["image"].startswith(b"RIFF") for row in rows)
    assert all(row["nearest"] in ("rex", "fido") for row in rows)
    assert all(abs(row["prompt_score"]) <= 1 for row in rows)


def test_the_table_has_a_row_per_model_which_agrees_with_its_images(evaluated):
    with (evaluated / "subjects.csv").open() as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["fido", "rex", "vase"]
    for name, row in rows.items():
        images = table_of(evaluated, name)
        for column, of_image in (("identity", "identity"), ("prompt", "prompt_score"),
                                 ("clip_identity", "clip_identity")):  # fmt: skip
            mean = np.mean([image[of_image] for image in images])
            assert float(row[column]) == pytest.approx(mean, abs=1e-5)
        right = np.mean([image["nearest"] == name for image in images])
        assert float(row["nearest"]) == pytest.approx(right)
        assert int(row["num_lookalikes"]) == (0 if name == "vase" else 1)


def test_the_page_shows_all_models_the_worst_and_what_was_left_out(evaluated):
    text = (evaluated / "report.html").read_text()
    for name in NOUNS:
        assert f'id="subject-{name}"' in text
        assert f'id="worst-{name}"' in text
    assert "lost: the photographs are not known" in text
    assert text.count("data:image/webp") == 2 + 2 + 1
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_finished_models_are_kept_and_a_damaged_one_is_made_again(
    evaluated, place, monkeypatch, capsys
):
    made = []
    from dbray.run import evaluation

    real = evaluation.evaluate

    def counted(task, *rest):
        made.extend(record.id for record in task.records)
        return real(task, *rest)

    monkeypatch.setattr(evaluation, "evaluate", counted)
    before = {file.name: file.read_bytes() for file in (evaluated / "images").iterdir()}
    assert evaluate(place) == 3
    assert made == []
    [rex] = (evaluated / "images").glob("rex@*")
    rex.write_bytes(rex.read_bytes()[:-5])
    assert evaluate(place) == 3
    assert made == ["rex"]
    assert "2 model(s) have results already" in capsys.readouterr().out
    assert {file.name for file in (evaluated / "images").iterdir()} == set(before)
    assert table_of(evaluated, "rex")[0]["prompt"] == "a zb dog in the snow"


def test_other_settings_make_other_results(evaluated, place, monkeypatch):
    from dbray.run import evaluation

    made = []
    monkeypatch.setattr(evaluation, "evaluate", lambda task, *_: made.extend(task.records) or [])
    assert evaluate(place, "--seed", "1") == 2  # nothing was made, so there is nothing to show
    assert len(made) == 3


def test_an_embedder_is_needed(place, capsys):
    assert main(["evaluate", str(place / "runs"), "-o", str(place / "none")]) == 2
    assert "neither the job nor its base names one" in capsys.readouterr().err
    assert not (place / "none").exists()


def test_the_protocol_has_four_images_of_each_prompt():
    assert _parser().parse_args(["evaluate", "runs"]).images == 4


def test_what_is_neither_a_registry_nor_a_job_is_an_error(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "nothing")]) == 2
    assert "is neither a folder nor a job file" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert main(["evaluate", str(tmp_path / "runs")]) == 2
    assert "has no models to evaluate" in capsys.readouterr().err


def test_a_job_file_names_its_own_models_embedders_and_sampling(
    place, evaluated, tiny_base, capsys, monkeypatch
):
    from dbray.run import evaluation

    manifest = place / "subjects.jsonl"
    rows = json.loads((place / "runs/jobs/job/job.json").read_text())["subjects"]
    manifest.write_text("\n".join(json.dumps(row) for row in rows[:1]))
    job = place / "job.yaml"
    job.write_text(json.dumps({
        "id": "other", "base": str(tiny_base), "subjects": str(manifest),
        "storage": str(place / "runs"), "recipe": {"resolution": 32},
        "scoring": {"embedder": str(place / "dinov2"), "clip": str(place / "clip")},
        "previews": {"steps": 2, "guidance": 2},
    }))  # fmt: skip
    # The same measurement as before, so nothing is made again.
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("made again"))
    code = main([
        "evaluate", str(job), "-o", str(place / "out"), "--images", "2",
        "--prompts", str(place / "prompts.txt"),
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert "1 model(s) evaluated" in capsys.readouterr().out


@pytest.mark.slow
def test_embedders_of_real_size_run_unmodified(place, ray_session, tmp_path):
    """DINOv2-small and CLIP ViT-B/32 with random weights, in the layout of the hub's folders."""
    code = main([
        "evaluate", str(place / "runs"), "-o", str(tmp_path / "out"), "--images", "2",
        "--prompts", str(place / "prompts.txt"), "--steps", "2",
        "--embedder", str(build_dinov2_small(tmp_path / "dinov2-small")),
        "--clip", str(build_clip_base(tmp_path / "clip-vit-base-patch32")),
    ])  # fmt: skip
    assert code == 3  # one has no photographs
    [rex] = (tmp_path / "out/images").glob("rex@*")
    assert all(-1 <= row["prompt_score"] <= 1 for row in pq.read_table(rex).to_pylist())


def test_photographs_are_compared_within_the_class_noun_that_was_trained(tmp_path):
    """The job may have another noun by now: its look-alikes are not the model's."""
    store = Store(str(tmp_path))
    Registry(store).publish(
        records.record("rex", class_noun="dog", job_id="job"), {"unet.safetensors": b""}
    )
    row = {"id": "rex", "class_noun": "cat", "images": ["/photographs/0.png"]}
    store.write_json("jobs/job/job.json", {"subjects": [row]})
    [subject] = find_target(str(tmp_path)).subjects
    assert subject.class_noun == "dog"


def test_a_model_of_another_base_is_not_evaluated(tiny_base, tmp_path, capsys):
    store = Store(str(tmp_path / "runs"))
    record = records.record("rex", base=str(tiny_base), base_digest="0" * 64, job_id="job")
    Registry(store).publish(record, {"unet.safetensors": b""})
    row = {"id": "rex", "class_noun": "dog", "images": ["/photographs/0.png"]}
    store.write_json("jobs/job/job.json", {"subjects": [row]})
    (tmp_path / "prompts.txt").write_text("a {subject}\n")
    assert evaluate(tmp_path) == 2
    assert "rex: was trained on another" in capsys.readouterr().err
