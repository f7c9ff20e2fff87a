"""All errors of a manifest and its images are reported at once, and each image is fetched once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from kit.profiles import DISPLAY_P3, rgb_profile
from kit.worlds import errors_of
from PIL import Image

from dbray.errors import StoreError
from dbray.spec.subject import Subject
from dbray.storage import store
from dbray.subjects import validation


def picture(seed: int, file_format: str = "PNG", side: int = 80) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.resize((side, side), Image.Resampling.NEAREST).save(buffer, file_format)
    return buffer.getvalue()


def write(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two subjects of three images each, in folders."""
    folder = tmp_path / "photos"
    for subject, first in (("rex", 0), ("teapot", 10)):
        for index in range(3):
            write(folder / subject / f"{index}.png", picture(first + index))
    return folder


def listed(found) -> list[tuple[str, str, int]]:
    return [
        (checked.subject.id, checked.subject.class_noun, len(checked.subject.images))
        for checked in found.subjects
    ]


def test_dreambooth_dataset(dreambooth):
    for source in (dreambooth, dreambooth / "dataset"):
        found = validation.validate(str(source))
        assert found.problems == ()
        assert len(found.subjects) == 30
        assert len({checked.subject.class_noun for checked in found.subjects}) == 15
        assert sum(len(checked.image_digests) for checked in found.subjects) == 158
        nouns = {c.subject.id: c.subject.class_noun for c in found.subjects}
        assert nouns["bear_plushie"] == "stuffed animal"
        assert nouns["dog8"] == "dog"
        assert nouns["pink_sunglasses"] == "glasses"


TEN_FAULTS = [
    '{"id": "good", "class_noun": "dog", "images": ["good"]}',
    '{"id": "broken json", ',
    '{"id": "typo", "class_noun": "dog", "image": ["good"]}',
    '{"id": "Bad Id", "class_noun": "dog", "images": ["good/0.png", "missing.png"]}',
    '{"id": "good", "class_noun": "dog", "images": ["other"]}',
    '{"id": "none", "class_noun": "dog", "images": []}',
    '{"id": "captions", "class_noun": "dog", "images": ["c"], "captions": ["a {subject}"]}',
    '{"id": "files", "class_noun": "dog", "images": ["cut.jpg", "zero.png", "text.png", "b.png"]}',
    '{"id": "scheme", "class_noun": "dog", "images": ["http://169.254.169.254/latest"]}',
    '["no", "subject"]',
    '{"id": "noun", "class_noun": "", "images": ["good"]}',
]


def test_a_manifest_with_many_faults_names_all_of_them_at_once(tmp_path):
    for folder, first in (("good", 0), ("other", 10), ("c", 20)):
        for index in range(3):
            write(tmp_path / folder / f"{index}.png", picture(first + index))
    write(tmp_path / "cut.jpg", picture(30, "JPEG")[:900])
    write(tmp_path / "zero.png", b"")
    write(tmp_path / "text.png", "<html>404</html>")
    huge = bytearray(picture(31))
    huge[16:24] = (50_000).to_bytes(4, "big") * 2
    huge[29:33] = __import__("zlib").crc32(huge[12:29]).to_bytes(4, "big")
    write(tmp_path / "b.png", bytes(huge))
    file = write(tmp_path / "many.jsonl", "\n".join(TEN_FAULTS))
    found = validation.validate(str(file))
    errors = [(error.where, error.what, error.subject) for error in errors_of(found)]
    expected = [
        (2, "not valid JSON", None),
        (3, "image: unknown key", "typo"),
        (3, "images: is missing", "typo"),
        (4, "id: 'Bad Id' is not a valid id", "Bad Id"),
        (4, "missing.png does not exist", "Bad Id"),
        (5, f"listed twice, here and at {file}:1", "good"),
        (6, "has no images", "none"),
        (7, "has 1 captions for 3 images", "captions"),
        (8, "cut.jpg: is damaged or incomplete", "files"),
        (8, "zero.png: is empty (0 bytes)", "files"),
        (8, "text.png: is not a PNG, JPEG or WebP image", "files"),
        (8, "b.png: claims to have more than 64 million pixels", "files"),
        (9, "images are read from file, s3, gs only", "scheme"),
        (10, "is not a subject", None),
        (11, "class_noun: String should have at least 1 character", "noun"),
    ]
    for line, text, subject in expected:
        matching = [
            e for e in errors if e[0] == f"{file}:{line}" and text in e[1] and e[2] == subject
        ]
        assert len(matching) == 1, (line, text, errors)
    assert len(errors) == len(expected)
    assert all(problem.fix for problem in found.problems)
    assert listed(found) == [("good", "dog", 3)]


def test_copies_and_near_copies_are_reported(photos):
    rex, teapot = photos / "rex", photos / "teapot"
    write(rex / "copy.png", (rex / "0.png").read_bytes())
    with Image.open(teapot / "1.png") as image:
        image.resize((70, 70)).save(teapot / "small.jpg", quality=80)
    found = validation.validate(str(photos), class_noun="thing")
    assert errors_of(found) == []
    texts = {problem.subject: problem.what for problem in found.problems}
    assert texts == {
        "rex": f"{rex / '0.png'} and {rex / 'copy.png'} are the same file",
        "teapot": f"{teapot / '1.png'} and {teapot / 'small.jpg'} look almost the same",
    }
    assert len(found.subjects) == 2


def test_one_path_listed_twice_and_too_few_images(photos):
    subject = Subject(id="rex", class_noun="dog", images=("rex/0.png", "rex/0.png", "rex/1.png"))
    found = validation.validate([subject], folder=photos)
    assert [w.what for w in found.problems] == [
        f"{photos / 'rex/0.png'} is listed twice",
        "has only 2 images",
    ]
    [checked] = found.subjects
    assert len(checked.image_digests) == 3


def test_problems_name_remote_images_without_their_secrets(monkeypatch):
    files = {"cut": picture(0)[:99], "tiny": picture(1, side=20), "copy": picture(1, side=20)}
    names = {f"s3://KEY:SECRET@b/{name}.png?x=SECRET": data for name, data in files.items()}
    monkeypatch.setattr(store, "read_uri", lambda uri, limit_bytes=None: names[uri])
    subjects = [Subject(id=f"s{n}", class_noun="dog", images=tuple(names)) for n in range(2)]
    reported = "\n".join(map(str, validation.validate(subjects).problems))
    for reason in ("damaged", "20 x 20", "the same file", "shares"):
        assert reason in reported
    assert "s3://***@b/cut.png" in reported
    assert "SECRET" not in reported


def test_a_list_and_its_images_lie_on_an_object_store(s3_uri):
    remote = store.Store(s3_uri)
    for index in range(3):
        remote.write_bytes(f"photos/{index}.png", picture(index))
    images = [f"photos/{index}.png" for index in range(3)]
    remote.write_json("all.yaml", [{"id": "rex", "class_noun": "dog", "images": images}])
    address, options = s3_uri.split("?")
    found = validation.validate(f"{address}/all.yaml?{options}")
    assert found.problems == ()
    [rex] = found.subjects
    assert rex.image_digests == tuple(store.digest(picture(index)) for index in range(3))


def test_a_broken_address_hides_no_other_problem(tmp_path):
    images = ("s3://[my-bucket]/a.png", "missing.png")
    subject = Subject(id="rex", class_noun="dog", images=images)
    errors = errors_of(validation.validate([subject], folder=tmp_path))
    assert len(errors) == 2
    assert any("s3://[my-bucket]/a.png' is not an address" in error.what for error in errors)
    assert any("missing.png does not exist" in error.what for error in errors)


def test_images_shared_by_two_subjects_are_reported(photos):
    write(photos / "teapot/3.png", (photos / "rex/1.png").read_bytes())
    [warning] = validation.validate(str(photos), class_noun="thing").problems
    assert warning.subject == "teapot"
    assert "shares 1 of its images with subject 'rex'" in warning.what
    assert f"{photos / 'teapot/3.png'} is {photos / 'rex/1.png'}" in warning.what


def test_tiny_images_warn(photos):
    write(photos / "rex/0.png", picture(0, side=20))
    [warning] = validation.validate(str(photos), class_noun="thing").problems
    assert "has only 20 x 20 pixels" in warning.what


def test_wrong_suffixes_do_not_matter_but_contents_do(photos):
    write(photos / "rex/0.png", picture(0, "WEBP"))
    write(photos / "rex/1.png", picture(1, "GIF"))
    (photos / "rex/2.png").rename(photos / "rex/2.JPG")
    [error] = errors_of(validation.validate(str(photos), class_noun="thing"))
    assert "1.png: is a GIF file" in error.what


def test_unreadable_files_are_reported(photos):
    (photos / "rex/broken-link.png").symlink_to("nowhere")
    os.mkfifo(photos / "rex/pipe.png")
    (photos / "rex/folder.png").mkdir()
    errors = errors_of(validation.validate(str(photos), class_noun="dog"))
    assert [("nowhere" in e.what, "regular file" in e.what) for e in errors] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_every_image_is_fetched_once(photos, monkeypatch):
    fetched, threads = Counter(), set()
    original = store.read_uri

    def read_uri(uri, limit_bytes=None):
        fetched[uri] += 1
        threads.add(threading.current_thread().name)
        return original(uri, limit_bytes)

    monkeypatch.setattr(store, "read_uri", read_uri)
    progress = []
    images = ("rex/0.png", "rex/1.png", "rex/2.png")
    subjects = [Subject(id=f"s{n}", class_noun="dog", images=images) for n in range(5)]
    validation.validate(subjects, folder=photos, on_progress=lambda *now: progress.append(now))
    assert set(fetched.values()) == {1}
    assert len(fetched) == 3
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert threading.current_thread().name not in threads


def test_written_manifests_read_back_the_same(photos, tmp_path):
    subjects, _ = validation.scan(photos, "dog")
    outside = Subject(id="far", class_noun="cat", images=("s3://b/a.png",), identifier="sks",
                      captions=("a {subject}",))  # fmt: skip
    file = photos.parent / "all.jsonl"
    validation.write_jsonl([*subjects, outside], file)
    assert '"photos/rex/0.png"' in file.read_text(encoding="utf-8")
    read, problems = validation.read(str(file))
    assert problems == []
    assert [subject for subject, _ in read] == [*subjects, outside]
    assert [where for _, where in read] == [f"{file}:{line}" for line in (1, 2, 3)]
    buffer = io.StringIO()
    validation.write_jsonl(subjects, buffer)
    elsewhere = write(tmp_path / "else/where.jsonl", buffer.getvalue())
    assert [subject for subject, _ in validation.read(str(elsewhere))[0]] == subjects
    with pytest.raises(StoreError, match="cannot write"):
        validation.write_jsonl(subjects, photos / "rex/0.png/a.jsonl")


def test_validation_imports_neither_torch_nor_ray(photos):
    code = (
        "import sys; from dbray.records import models; from dbray.subjects import validation;"
        f"v = validation.validate({str(photos)!r}, 'dog'); assert len(v.subjects) == 2;"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_photographs_smaller_than_the_training_resolution_give_one_line(photos):
    assert validation.validate(str(photos), "dog", resolution=80).problems == ()
    problems = validation.validate(str(photos), "dog", resolution=512).problems
    assert [problem.subject for problem in problems] == ["rex", "teapot"]
    assert "0.png has only 80 x 80 pixels, and so have 2 others" in problems[0].what
    assert "training sees 512 x 512" in problems[0].what


def test_a_strip_gives_a_warning(photos):
    with Image.open(photos / "rex/0.png") as image:
        image.resize((640, 80)).save(photos / "rex/0.png")
    [warning] = validation.validate(str(photos), "dog").problems
    assert "640 x 80 pixels, of which a square keeps 12%" in warning.what


def test_look_alikes_give_one_line(photos):
    for number in range(60):
        with Image.open(photos / "rex/0.png") as image:
            image.point(lambda value, n=number: max(value - n // 20, 0)).save(
                photos / f"rex/frame-{number:02}.png"
            )
    [warning] = validation.validate(str(photos), "dog").problems
    assert "0.png" in warning.what
    assert "and 59 others look almost the same" in warning.what


def test_pictures_that_show_nothing_are_reported_as_that(photos):
    Image.new("RGB", (80, 80), "blue").save(photos / "rex/3.png")
    Image.new("RGBA", (80, 80), (9, 9, 9, 0)).save(photos / "rex/4.png")
    whats = [problem.what for problem in validation.validate(str(photos), "dog").problems]
    assert whats == [
        f"{photos / 'rex/3.png'} is blank, of one colour",
        f"{photos / 'rex/4.png'} is fully transparent",
    ]


def test_photographs_that_decode_as_ever_carry_no_mark(photos):
    assert [one.decodings for one in validation.validate(str(photos), "dog").subjects] == [(), ()]
    with Image.open(photos / "rex/1.png") as image:
        image.save(photos / "rex/1.png", icc_profile=rgb_profile(DISPLAY_P3))
    rex, teapot = validation.validate(str(photos), "dog").subjects
    assert (rex.decodings, teapot.decodings) == ((1, 2, 1), ())
