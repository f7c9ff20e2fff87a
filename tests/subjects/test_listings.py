"""Every way to list subjects gives the same subjects, and unreadable items are reported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kit.worlds import errors_of

from dbray.errors import StoreError
from dbray.spec.subject import Subject
from dbray.storage import store
from dbray.subjects import validation


def write(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two subjects of three images each, in folders; the images are not opened here."""
    for subject in ("rex", "teapot"):
        for index in range(3):
            write(tmp_path / "photos" / subject / f"{index}.png", b"unopened")
    return tmp_path / "photos"


def read(source, class_noun=None, folder=".") -> tuple[list[Subject], list]:
    found, problems = validation.read(source, class_noun, folder)
    return [subject for subject, _ in found], problems


def listed(subjects) -> list[tuple[str, str, int]]:
    return [(subject.id, subject.class_noun, len(subject.images)) for subject in subjects]


BOTH = [("rex", "dog", 3), ("teapot", "tea pot", 3)]
LISTS = {
    "a.jsonl": """{"id": "rex", "class_noun": "dog", "images": ["photos/rex"]}

{"subject_id": "teapot", "class_noun": "tea  pot",
"images": ["photos/teapot/0.png", "photos/teapot/1.png", "photos/teapot/2.png"]}
""".replace(",\n", ", "),
    "a.yaml": """
- id: rex
  class_noun: dog
  images: [photos/rex/0.png, photos/rex/1.png, photos/rex/2.png]
- id: teapot
  class_noun: tea pot
  images: photos/teapot
""",
    "b.yml": """
subjects:
  - {id: rex, class_noun: dog, images: [photos/rex]}
  - {id: teapot, class_noun: tea pot, images: [photos/teapot]}
""",
    "a.csv": """\ufeffid,class_noun,images
rex,dog,photos/rex/0.png; photos/rex/1.png;photos/rex/2.png
teapot,tea pot,photos/teapot
""",
}


@pytest.mark.parametrize("name", LISTS)
def test_every_format_lists_the_same_subjects(name, photos):
    file = write(photos.parent / name, LISTS[name])
    for source in (str(file), file.as_uri()):
        subjects, problems = read(source)
        assert problems == []
        assert listed(subjects) == BOTH
        for subject in subjects:
            folder = photos / subject.id
            assert subject.images == tuple(str(folder / f"{index}.png") for index in range(3))


def test_a_folder_of_folders_lists_subjects(photos):
    write(photos / "teapot/class.txt", "\ntea pot\n")
    write(photos / ".hidden/0.png", b"junk")
    write(photos / "rex/.hidden.png", b"junk")
    write(photos / "rex/notes.txt", "good boy")
    subjects, problems = validation.scan(photos, "dog")
    assert problems == []
    assert listed(subjects) == BOTH
    assert read(str(photos), "dog") == (subjects, [])
    subjects, [problem] = validation.scan(photos)
    assert [s.id for s in subjects] == ["teapot"]
    assert (problem.subject, problem.where) == ("rex", str(photos / "rex"))
    assert "class.txt" in problem.fix


def test_folder_names_become_ids_and_clashes_are_reported(photos):
    (photos / "rex").rename(photos / "My Dog, Rex!")
    (photos / "teapot").rename(photos / "my dog  rex")
    errors = errors_of(validation.validate(str(photos), class_noun="dog"))
    [error] = [error for error in errors if "is listed twice" in error.what]
    assert error.subject == "my-dog--rex"
    assert "rename the folder" in error.fix
    assert "My Dog, Rex!" in error.what + error.where
    assert "my dog  rex" in error.what + error.where


def test_skipped_files_of_a_folder_are_reported(photos):
    write(photos / "rex/IMG_1.HEIC", b"\0\0\0\x18ftypheic")
    write(photos / "rex/originals/0.png", b"")
    write(photos / "loose.jpg", b"")
    write(photos / "empty/readme.txt", b"")
    subjects, problems = validation.scan(photos, "dog")
    warnings = "\n".join(str(p) for p in problems if p.severity == "warning")
    assert "IMG_1.HEIC is left out" in warnings
    assert "originals is not searched" in warnings
    assert "loose.jpg" in warnings
    errors = [(p.subject, p.what) for p in problems if p.severity == "error"]
    assert errors == [("empty", "has no images")]
    assert "rex" in [subject.id for subject in subjects]


def test_image_files_are_found_by_their_first_bytes(photos):
    write(photos / "rex/3.jfif", b"unopened")
    write(photos / "rex/DSC_4", b"\xff\xd8\xff\xe0")
    write(photos / "rex/notes", "BMW, good boy")
    write(photos / "rex/scan", b"II*\0")
    write(photos / "__MACOSX/rex/._0.png", b"junk")
    subjects, [warning] = validation.scan(photos, "dog")
    assert listed(subjects) == [("rex", "dog", 5), ("teapot", "dog", 3)]
    assert "scan is left out: it is a TIFF file" in warning.what


@pytest.mark.parametrize("name", ["日本", "base", "!!!"])
def test_folders_whose_names_give_no_id_are_rejected(photos, name):
    (photos / "rex").rename(photos / name)
    subjects, [error] = validation.scan(photos, "dog")
    assert [subject.id for subject in subjects] == ["teapot"]
    assert "rename the folder" in error.fix


def test_an_unreadable_folder_does_not_hide_others(photos, monkeypatch):
    listing = Path.iterdir

    def iterdir(path):
        if path.name == "rex":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    write(photos / "void/readme.txt", b"")
    _, problems = validation.scan(photos, "dog")
    assert [(p.subject, p.what.rpartition(": ")[2]) for p in problems] == [
        ("rex", "Permission denied"), ("void", "has no images"),
    ]  # fmt: skip


def test_class_files_with_a_bom_are_read_and_empty_ones_reported(photos):
    write(photos / "rex/class.txt", b"\xef\xbb\xbfdog\r\n")
    write(photos / "teapot/class.txt", " \n")
    [rex], [error] = validation.scan(photos)
    assert rex.class_noun == "dog"
    assert error.where == str(photos / "teapot/class.txt")
    assert "is empty" in error.what


def test_unwritable_names_and_circular_links_are_reported(photos):
    (photos / "rex/loop.png").symlink_to("loop.png")
    os.close(os.open(os.fsencode(photos) + b"/rex/\xff.png", os.O_CREAT))
    errors = errors_of(validation.validate(str(photos), class_noun="dog"))
    assert any("rename it" in error.fix and "udcff" in error.what for error in errors)
    assert any("links run in a circle" in error.what for error in errors)


def test_an_empty_folder_is_reported(tmp_path):
    [error] = errors_of(validation.validate(str(tmp_path)))
    assert "no sub-folders and no images" in error.what


def test_a_dreambooth_class_without_a_folder_is_reported(photos):
    classes = "Classes\n\nsubject_name,class\nrex,dog\nteapot,tea pot\nlost,cat\n\nPrompts\nx,y\n"
    write(photos.parent / "root/dataset/prompts_and_classes.txt", classes)
    for name in ("rex", "teapot"):
        (photos / name).rename(photos.parent / "root/dataset" / name)
    subjects, [warning] = read(str(photos.parent / "root"))
    assert listed(subjects) == BOTH
    assert "'lost'" in warning.what


def test_yaml_and_csv_errors_have_their_lines(photos):
    file = write(
        photos.parent / "a.yaml", "- id: rex\n  class_noun: dog\n  pictures: [photos/rex]\n"
    )
    _, errors = read(str(file))
    assert [e.where for e in errors] == [f"{file}:1", f"{file}:3"]
    file = write(photos.parent / "b.yaml", "- id: rex\n  images: [photos/rex\n- id")
    _, [error] = read(str(file))
    assert "not valid YAML" in error.what
    file = write(photos.parent / "c.yaml", "rex: dog")
    _, [error] = read(str(file))
    assert "not a list of subjects" in error.what
    rows = 'id,class_noun,images\nrex,dog,photos/rex\nfido,dog,x,y,z\n"no end'
    file = write(photos.parent / "a.csv", rows)
    _, errors = read(str(file))
    assert [(e.where, e.what.split(":")[0]) for e in errors] == [
        (f"{file}:3", "has more cells than there are columns"),
        (f"{file}:4", "is not valid CSV"),
    ]
    file = write(photos.parent / "b.csv", "name,photos\nrex,x\n")
    _, [error] = read(str(file))
    assert error.where == f"{file}:1"
    file = write(photos.parent / "d.csv", rows + "\nfido,dog,x\n\ntom,cat,y")
    assert [e.where for e in read(str(file))[1]] == [f"{file}:3", f"{file}:4"]


def test_unreadable_sources_are_reported(tmp_path):
    write(tmp_path / "empty.jsonl", "\n\n")
    write(tmp_path / "latin.jsonl", "é".encode("latin-1"))
    write(tmp_path / "a.txt", "x")
    for name, reason in (
        ("none.jsonl", "does not exist"), ("empty.jsonl", "lists no subjects"),
        ("latin.jsonl", "UTF-8|decode"), ("a.txt", "is not a manifest"),
    ):  # fmt: skip
        [error] = errors_of(validation.validate(str(tmp_path / name)))
        assert any(part in error.what + error.fix for part in reason.split("|"))
    [error] = errors_of(validation.validate("s3://bucket/folder"))
    assert "is not a manifest" in error.what
    [error] = errors_of(validation.validate("https://example.invalid/a.jsonl"))
    assert "its scheme is not one of" in error.what
    [error] = errors_of(validation.validate([]))
    assert "lists no subjects" in error.what
    for odd in ("a\0b.jsonl", "~nobody-here/a.jsonl", "ftp://x/a.jsonl"):
        assert len(errors_of(validation.validate(odd))) == 1


def test_remote_lists_may_not_use_local_files(monkeypatch):
    lines = [
        {"id": f"s{number}", "class_noun": "dog", "images": [image]}
        for number, image in enumerate(
            [
                "/etc/passwd",
                "~/x.png",
                "file:///etc/passwd",
                "../../x.png",
                "a/b.png",
                "gs://b/c.png",
            ]
        )
    ]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    asked = []

    def read_uri(uri, limit_bytes=None):
        asked.append(uri)
        if uri.endswith(".jsonl"):
            return text
        raise StoreError(f"{uri} does not exist")

    monkeypatch.setattr(store, "read_uri", read_uri)
    found = validation.validate("s3://bucket/lists/all.jsonl")
    assert sorted(asked[1:]) == ["gs://b/c.png", "s3://bucket/lists/a/b.png"]
    refused = [e.subject for e in errors_of(found) if "remote list" in e.what]
    assert refused == ["s0", "s1", "s2", "s3"]


def refused_of_remote_list(monkeypatch, uri: str, images: list[str]) -> tuple[list, list[str]]:
    """Return the images that a list at a URI may not use, and the addresses read for the others."""
    asked = []
    lines = [json.dumps({"id": f"s{number}", "class_noun": "dog", "images": [image]})
             for number, image in enumerate(images)]  # fmt: skip

    def read_uri(address, limit_bytes=None):
        if address == uri:
            return "\n".join(lines).encode()
        asked.append(address)
        raise StoreError(f"{address} does not exist")

    monkeypatch.setattr(store, "read_uri", read_uri)
    problems = validation.validate(uri).problems
    refused = [int(p.subject[1:]) for p in problems if "a remote list may not" in p.what]
    return [images[number] for number in refused], sorted(asked)


def test_remote_lists_may_not_use_endpoints_or_credentials(monkeypatch):
    wrong = [
        "s3://b/k.png?endpoint_override=10.0.0.5:8080&scheme=http",
        "k.png?endpoint_override=10.0.0.5:8080&scheme=http",
        "s3://KEY:SECRET@b/k.png",
        "gs://somebody@b/k.png",
        "s3://[b/k.png?x",
    ]
    right = ["s3://b/k.png", "k@2x.png", "deep/k.png"]
    refused, asked = refused_of_remote_list(monkeypatch, "s3://l/lists/all.jsonl", wrong + right)
    assert refused == wrong[:4]
    assert asked == ["s3://b/k.png", "s3://l/lists/deep/k.png", "s3://l/lists/k@2x.png"]


def test_images_of_a_remote_list_are_read_with_its_options(monkeypatch):
    options = "endpoint_override=minio:9000&region=a/b.c"
    images = [
        "k.png",
        f"s3://b/k.png?{options}",
        f"j.png?{options}",
        f"k.png?{options}&scheme=http",
    ]
    uri = f"s3://KEY:SECRET@l/lists/all.JSONL?{options}"
    refused, asked = refused_of_remote_list(monkeypatch, uri, images)
    assert refused == images[3:]
    assert asked == [
        f"s3://KEY:SECRET@l/lists/j.png?{options}",
        f"s3://KEY:SECRET@l/lists/k.png?{options}",
        f"s3://b/k.png?{options}",
    ]


def test_a_local_list_may_use_options_and_credentials(tmp_path):
    """The list belongs to the user, and a '?' in its name has no meaning."""
    image = "s3://KEY:SECRET@b/k.png?endpoint_override=minio:9000"
    line = json.dumps({"id": "rex", "class_noun": "dog", "images": [image]})
    [rex], problems = read(str(write(tmp_path / "rex?x.jsonl", line)))
    assert (rex.images, problems) == ((image,), [])


def test_captions_keep_the_order_of_images(photos):
    captions = ("a {subject} asleep", "{subject}", "a photo of a {class}")
    subject = Subject(id="rex", class_noun="dog", images=("rex",), captions=captions)
    _, [error] = read([subject], folder=photos)
    assert "does not contain {subject}" in error.what
    cells = f"rex,dog,photos/rex,{captions[0]}|{captions[1]}|my {{subject}}"
    file = write(photos.parent / "c.csv", f"id,class_noun,images,captions\n{cells}\n")
    [(subject, where)], problems = validation.read(str(file))
    assert problems == []
    assert subject.captions == (*captions[:2], "my {subject}")
    assert where.endswith("c.csv:2")


def test_a_wrong_field_does_not_hide_wrong_captions(photos):
    line = {"id": 5, "class_noun": "dog", "images": ["photos/rex"], "captions": ["a dog"]}
    _, errors = read(str(write(photos.parent / "a.jsonl", json.dumps(line))))
    assert [error.what.split(" ")[0] for error in errors] == ["id:", "has", "captions:"]
    assert "quotes" in errors[0].fix


def test_unicode_names_and_line_separators_are_read(tmp_path):
    name = "Zoë\u202f3\u2028.png"
    write(tmp_path / name, b"")
    line = json.dumps({"id": "zoe", "class_noun": "dög", "images": [name]}, ensure_ascii=False)
    [subject], problems = read(str(write(tmp_path / "a.jsonl", line + "\r\n")))
    assert problems == []
    assert listed([subject]) == [("zoe", "dög", 1)]
    assert Path(subject.images[0]).exists()


def test_a_key_given_twice_is_an_error(photos):
    line = '{"id": "rex", "id": "fido", "class_noun": "dog", "images": ["photos/rex"]}'
    _, [error] = read(str(write(photos.parent / "a.jsonl", line)))
    assert "'id' is given twice" in error.what
