"""The report: its content, escaping and size, and that it works in a browser."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from kit import records
from PIL import Image

from dbray import report
from dbray.errors import SpecError, StoreError
from dbray.records import previews
from dbray.records.models import Registry
from dbray.records.results import Outcome, Summary
from dbray.report import build_report
from dbray.report.contents import Card, Contents, JobFile, Preview
from dbray.report.headline import duration
from dbray.report.page import _class_images, render
from dbray.report.thumbnails import SIDES, Thumbnails
from dbray.spec.job import Job
from dbray.spec.prompts import fill_prompt
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.storage.store import Store
from dbray.subjects import images

EVIL = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">{{script}}'
)
PROMPTS = ("a photo of {subject} on the beach", "a {class}")


def picture(seed, side=64):
    """Make a smooth picture like a photograph, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return images.encode_png(np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)))


def record(subject_id, noun="dog", **changes):
    values = {
        "class_noun": noun, "identifier": "qzx", "base_digest": "ab" * 32,
        "recipe": Recipe(steps=400), "prior_digest": "cd" * 32, "image_digests": ("a" * 64,),
        "timings": {"train": 20.0}, "steps": 400,
        "loss": ((1, 0.9, 0.5, 0.4), (400, 0.3, 0.2, 0.1)), "created_at": "2026-07-01T12:00:00Z",
        "job_id": "pets",
    }  # fmt: skip
    return records.record(subject_id, **(values | changes))


def row(subject_id, status="published", noun="dog", error=None, **changes):
    return {
        "id": subject_id, "class_noun": noun, "status": status, "identifier": "qzx",
        "revision": record(subject_id).revision, "attempts": 1, "seconds": 21.0,
        "timings": {"encode": 0.5, "train": 20.0, "publish": 0.2}, "error": error,
    } | changes  # fmt: skip


class World:
    """A storage with a job, written as a run writes it."""

    def __init__(self, folder):
        self.store = Store(str(folder / "runs"))
        self.registry = Registry(self.store)
        self.photos = folder / "photos"
        self.photos.mkdir()
        self.rows, self.subjects = [], []

    def photograph(self, name, seed):
        (self.photos / name).write_bytes(picture(seed, 120))
        return str(self.photos / name)

    def add(self, subject_id, result=None, noun="dog", num_photographs=2):
        number = len(self.subjects)
        paths = [
            self.photograph(f"{number}-{index}.png", 10 * number + index)
            for index in range(num_photographs)
        ]
        self.subjects.append({"id": subject_id, "class_noun": noun, "images": paths})
        if result is not None:
            self.rows.append(result)

    def publish(self, subject_id, noun="dog", copies=(), **changes):
        one = record(subject_id, noun, **changes)
        self.registry.publish(one, {"unet.safetensors": b"weights"})
        files = {f"{index}.png": picture([index, *subject_id.encode()])
                 for index in range(len(PROMPTS))}  # fmt: skip
        files |= {f"base-{index}.png": picture(5000 + index + len(noun)) for index in range(2)}
        files |= {f"photo-{index}.webp": data for index, data in enumerate(copies)}
        described = {
            "prompts": [fill_prompt(prompt, noun, one.identifier) for prompt in PROMPTS],
            "base_prompts": [fill_prompt(prompt, noun) for prompt in PROMPTS],
            "seed": 0,
            "seeds": [9007199254740993, 7],
        }
        files["previews.json"] = json.dumps(described).encode()
        previews.annex(self.store, one.name).publish(files)
        self.add(subject_id, row(subject_id, noun=noun, revision=one.revision), noun)

    def write(self, summary=None, **changes):
        job = Job(id="pets", base="miniature", subjects=(), storage=self.store.uri)
        job = job.model_copy(update={"previews": job.previews.model_copy(
            update={"prompts": PROMPTS})})  # fmt: skip
        value = {
            "job": job.model_dump(mode="json", by_alias=True),
            "started_at": "2026-07-01T11:00:00Z", "dbray_version": "0.1.0",
            "base": {"name": "miniature", "digest": "ab" * 32}, "subjects": self.subjects,
        }  # fmt: skip
        self.store.write_json("jobs/pets/job.json", value | changes)
        lines = "".join(json.dumps(one) + "\n" for one in self.rows)
        self.store.write_bytes("jobs/pets/results.jsonl", lines.encode())
        if summary is not None:
            self.store.write_json("jobs/pets/summary.json", summary)

    def build(self, **options):
        path = build_report(self.store, "pets", **options)
        return Page(self.store.read_bytes(path).decode())


def summary_of(rows, **changes):
    failed = [one for one in rows if one["error"]]
    kinds = dict.fromkeys(one["error"]["kind"] for one in failed)
    groups = [[one for one in failed if one["error"]["kind"] == kind] for kind in kinds]
    return {
        "job_id": "pets", "state": "finished",
        "counts": {status: sum(one["status"] == status for one in rows)
                   for status in ("published", "kept", "failed", "unfinished")},
        "started_at": "2026-07-01T11:00:00Z", "updated_at": "2026-07-01T12:00:00Z",
        "wall_seconds": 3725.0, "phase_seconds": {"class images": 600.0, "training": 3000.0},
        "subjects_per_hour": 1234.5, "prior_images": 1200, "prior_images_per_second": 9.5,
        "prior_sets": 6, "train_steps": 12000, "lanes": 2,
        "failures": [
            {"kind": group[0]["error"]["kind"], "count": len(group),
             "example": group[0]["error"]["message"],
             "subjects": [one["id"] for one in group][:20]}
            for group in groups
        ],
        "retry_command": "dbray run pets.yaml --retry-failed",
    } | changes  # fmt: skip


class Page(HTMLParser):
    """A report as parsed by a browser."""

    def __init__(self, html):
        super().__init__()
        self.html, self.elements, self.texts = html, [], []
        self.raw = {"script": [], "style": []}
        self.blocks, self._open = {}, None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs))

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        tag, attributes = self._open or ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.blocks[attributes["id"]] = json.loads(data)
        elif tag in self.raw:
            self.raw[tag].append(data)
        else:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def index(self):
        return self.blocks["index"]

    def card(self, number=0):
        return self.blocks[f"data-{number}"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def pixels(thumbnail):
    return Image.open(io.BytesIO(base64.b64decode(thumbnail)))


def test_headline_and_card_of_a_published_subject(world):
    world.publish("rex")
    world.write(summary_of(world.rows))
    page = world.build()
    for figure in ("1 h 2 min", "1,234", "1,200", "9.5 per second", "2 lanes", "of 1 subject"):
        assert figure in page.text
    assert page.index["phase_seconds"] == {"class images": 600, "training": 3000, "other": 125}
    [listed] = page.index["subjects"]
    assert listed["id"] == "rex"
    assert listed["loss"] == 0.3
    card = page.card()
    assert len(card["photographs"]) == 2
    assert card["loss"] == [[1, 0.9, 0.5, 0.4], [400, 0.3, 0.2, 0.1]]
    prompts = [(prompt, base_prompt, seed) for _, _, prompt, base_prompt, seed in card["previews"]]
    assert prompts == [
        ("a photo of qzx dog on the beach", "a photo of dog on the beach", "9007199254740993"),
        ("a dog", "a dog", "7"),
    ]
    assert ["steps", "400", True] in page.index["recipes"][card["recipe"]]
    assert ["flip", "no", False] in page.index["recipes"][card["recipe"]]


FIDELITY = ((50, 0.41, 0.02, 4.1), (100, 0.62, 0.08, 8.3), (150, 0.615, 0.21, 12.4))
"""A curve whose second point is published."""


def test_a_card_has_the_fidelity_curve_and_all_steps_taken(world):
    loss = ((1, 0.9, 0.5, 0.4), (150, 0.3, 0.2, 0.1))
    world.publish("rex", steps=100, loss=loss, fidelity=FIDELITY)
    world.publish("tom", noun="cat")
    world.write(summary_of(world.rows))
    page = world.build()
    stopped, plain = page.card(0), page.card(1)
    assert stopped["fidelity"] == [list(point) for point in FIDELITY]
    assert (stopped["published"], stopped["steps"]) == (100, 150)
    assert (plain["fidelity"], plain["steps"]) == ([], 400)


def test_commands_name_the_revision_and_the_registry(world):
    world.publish("rex")
    world.write(summary_of(world.rows))
    commands = dict(world.build().card()["commands"])
    model = f"rex@{record('rex').revision}"
    assert commands["Generate"] == (
        f"dbray generate {model} 'a photo of {{subject}} on the beach' -n 4 -o out/ "
        f"--registry {world.store.uri}"
    )
    request = re.search(r"-d '(.*)'$", commands["From a server"])
    assert json.loads(request[1])["model"] == model


def test_the_report_is_written_to_the_job_and_is_deterministic(world):
    for number in range(6):
        world.publish(f"dog-{number}")
    world.write(summary_of(world.rows))
    assert build_report(world.store, "pets") == "jobs/pets/report.html"
    first = world.store.read_bytes("jobs/pets/report.html")
    build_report(world.store, "pets")
    assert world.store.read_bytes("jobs/pets/report.html") == first


def test_images_of_the_base_are_in_the_page_once(world):
    for number in range(5):
        world.publish(f"dog-{number}")
    world.publish("tom", noun="kitten")
    world.write(summary_of(world.rows))
    page = world.build()
    assert len(page.index["bases"]) == 4
    keys = [[preview[1] for preview in page.card(number)["previews"]] for number in range(6)]
    assert keys[0] == keys[4] != keys[5]
    for thumbnail in page.index["bases"].values():
        assert page.html.count(thumbnail) == 1


def test_user_input_is_escaped(world):
    error = {"kind": EVIL, "message": EVIL, "retryable": False}
    world.publish("rex", identifier=EVIL[:60], metadata={"note": EVIL})
    world.add("bad", row("bad", "failed", noun=EVIL, error=error), noun=EVIL)
    summary = summary_of(world.rows, retry_command=EVIL, state=EVIL, error=EVIL)
    world.write(summary, base={"name": EVIL, "digest": EVIL}, dbray_version=EVIL)
    page = world.build()
    assert [attrs for tag, attrs in page.elements if tag == "script" and "type" not in attrs] == [
        {}
    ]
    assert not [tag for tag, attrs in page.elements if tag == "img" or "onerror" in attrs]
    assert all("onerror" not in script for script in page.raw["script"])
    assert page.index["subjects"][1]["noun"] == EVIL
    assert page.index["subjects"][1]["error"] == [EVIL, EVIL, False]
    assert page.text.count(EVIL) >= 7


def test_the_page_loads_nothing_and_runs_only_its_own_script(world):
    world.publish("rex")
    world.write(summary_of(world.rows))
    page = world.build()
    for tag, attrs in page.elements:
        assert tag not in {"iframe", "object", "embed", "base", "img"}
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    [style], [script] = page.raw["style"], page.raw["script"]
    assert not re.search(r"url\(|@import|https?:", style)
    without_namespace = script.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|fetch\(|XMLHttp|innerHTML =|eval\(|import\(", without_namespace)
    [policy] = [attrs["content"] for tag, attrs in page.elements
                if attrs.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for text in (style, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_failures_are_grouped_with_the_retry_command(world):
    for number in range(23):
        error = {"kind": "Diverged", "message": "loss is nan", "retryable": False}
        world.add(f"d{number}", row(f"d{number}", "failed", error=error), num_photographs=0)
    lost = {"kind": "LaneLost", "message": "killed\nby SIGKILL", "retryable": True}
    world.add("last", row("last", "failed", error=lost), num_photographs=1)
    world.write(summary_of(world.rows))
    page = world.build()
    assert "Diverged 23" in page.text
    assert "and 3 more" in page.text
    assert "LaneLost 1" in page.text
    assert "killed by SIGKILL" in page.text
    assert "dbray run pets.yaml --retry-failed" in page.text
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert "#subject-d0" in links
    assert "#subject-last" in links
    assert len(page.card(23)["photographs"]) == 1
    assert page.card(23)["note"] is None


def test_an_interrupted_job_without_summary_is_shown(world):
    world.publish("rex")
    error = {"kind": "TrainError", "message": "no", "retryable": False}
    world.add("bad", row("bad", "failed", error=error))
    world.add("later")
    world.write()
    half = world.store.read_bytes("jobs/pets/results.jsonl") + b'{"id": "la'
    world.store.write_bytes("jobs/pets/results.jsonl", half)
    page = world.build()
    assert "interrupted" in page.text
    assert "TrainError 1" in page.text
    states = [subject["status"] for subject in page.index["subjects"]]
    assert states == ["published", "failed", "waiting"]


def test_the_report_of_a_broken_job_shows_its_error(world):
    world.add("rex")
    world.write(summary_of([], state="broken", error="no lane is left: out of memory"))
    page = world.build()
    assert "The job ended with an error" in page.text
    assert "no lane is left: out of memory" in page.text


def test_without_a_readable_summary_the_results_are_counted(world):
    error = {"kind": "TrainError", "message": "no", "retryable": False}
    world.add("bad", row("bad", "failed", error=error))
    world.write()
    world.store.write_bytes("jobs/pets/summary.json", b'{"state": "fini')
    assert "TrainError 1" in world.build().text


def test_later_rows_of_a_subject_replace_earlier_ones(world):
    error = {"kind": "TrainError", "message": "no", "retryable": True}
    world.rows.append(row("rex", "failed", error=error))
    world.publish("rex")
    world.write(summary_of(world.rows[1:]))
    assert [one["status"] for one in world.build().index["subjects"]] == ["published"]


def test_missing_photographs_previews_and_models_are_shown_as_missing(world):
    world.publish("rex")
    world.publish("bello")
    world.publish("fido")
    world.write(summary_of(world.rows))
    world.registry.remove("rex")
    (world.photos / "1-0.png").unlink()
    (world.photos / "1-1.png").write_bytes(b"no image")
    fido = world.registry.find("fido")
    world.store.write_bytes(f"models/fido/{fido.revision}/previews/0.png", b"rotten")
    page = world.build()
    assert "cannot be read" in page.card(0)["note"]
    assert page.card(0)["commands"] == []
    assert page.card(1)["photographs"] == []
    assert page.card(1)["missing"] == 2
    assert "no previews" in page.card(2)["note"]
    assert page.card(2)["facts"]


def test_photographs_come_from_the_caller_or_the_copies_or_the_files(world):
    copies = [picture(seed, 40) for seed in range(12)]
    world.publish("rex", copies=copies)
    world.write(summary_of(world.rows))
    shots = world.build().card()["photographs"]
    assert len(shots) == 12
    for shot, copy in zip(shots, copies, strict=True):
        difference = np.asarray(pixels(shot).convert("RGB"), int) - images.decode_png(copy)
        assert np.abs(difference).mean() < 8
    page = world.build(photographs=lambda subject: [picture(len(subject.images), 30)])
    assert [pixels(shot).size for shot in page.card()["photographs"]] == [(30, 30)]


def test_secrets_in_the_address_of_the_storage_are_left_out(world):
    world.publish("rex")
    world.write(summary_of(world.rows))
    job = world.store.read_json("jobs/pets/job.json")
    job["job"]["storage"] = "s3://key:secret@bucket/runs"
    world.store.write_json("jobs/pets/job.json", job)
    assert "secret" not in world.build().html


@pytest.mark.parametrize("job_id", ["../models", "a/b", "", "UPPER", "rex\n"])
def test_other_folders_are_rejected(world, job_id):
    with pytest.raises(SpecError, match="not a job id"):
        build_report(world.store, job_id)


def test_unknown_and_foreign_jobs_are_rejected(world):
    with pytest.raises(StoreError):
        build_report(world.store, "nobody")
    world.store.write_json("jobs/pets/job.json", {"something": "else"})
    with pytest.raises(StoreError, match=r"jobs/pets/job\.json"):
        build_report(world.store, "pets")


def test_thumbnails_shrink_with_their_number_and_never_grow():
    few, many = Thumbnails(100), Thumbnails(11_000)
    assert few.side == SIDES[0]
    assert many.side == SIDES[-1]
    assert pixels(few.make(picture(1, 500))).size == (256, 256)
    assert pixels(few.make(picture(1, 64))).size == (64, 64)
    assert pixels(many.make(picture(1, 500))).size == (96, 96)
    assert few.make(b"no image") is None
    assert few.share(b"no image") is None


def test_thumbnails_of_any_content_keep_to_their_budget():
    rng = np.random.default_rng(0)
    noise = images.encode_png(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
    made = Thumbnails(12_000, budget_bytes=44_000_000).make(noise)
    assert len(made) * 12_000 <= 44_000_000 * 1.001


def test_a_report_of_a_thousand_subjects_stays_small(world):
    """Six photographs and six previews each; the images repeat, but their sizes do not."""
    world.write()
    job = JobFile.model_validate(world.store.read_json("jobs/pets/job.json"))
    thumbnails = Thumbnails(1000 * 13)
    shots = [thumbnails.make(picture(seed, 300)) for seed in range(30)]
    of_base = [picture(seed) for seed in range(6)]
    loss = tuple((step, 0.123456, 0.234567, 0.345678) for step in range(200))
    cards = []
    for number in range(1000):
        one = record(f"dog-{number}", loss=loss)
        prompt = "a painting of qzx dog in the style of Vincent van Gogh"
        previews = [
            Preview(shots[(number + index) % 30], thumbnails.share(of_base[index]), prompt, prompt,
                    str(2**62))
            for index in range(6)
        ]  # fmt: skip
        result = Outcome.model_validate(row(one.id))
        cards.append(Card(one.id, "dog", result, one, shots[:6], 0, previews))
    html = render(Contents("pets", job, Summary(), cards, thumbnails))
    assert len(html) < 50_000_000
    assert len(thumbnails.shared) == 6
    page = Page(html)
    assert len(page.index["subjects"]) == 1000
    assert len(json.dumps(page.index)) < 1_000_000  # parsed before anything is shown
    assert len(page.card(999)["loss"]) == 100
    assert page.card(999)["loss"][-1][0] == 199


def test_a_very_large_job_shows_the_first_of_each_kind_and_lists_the_rest(world, monkeypatch):
    for module in (report.contents, report.headline):
        monkeypatch.setattr(module, "MAX_DETAILED", 2)
    read = []
    for number in range(4):
        world.publish(f"dog-{number}")
        error = {"kind": "Diverged", "message": "loss is nan", "retryable": False}
        world.add(f"bad-{number}", row(f"bad-{number}", "failed", error=error))
    world.write(summary_of(world.rows))
    page = world.build(photographs=lambda subject: read.append(subject.id) or [picture(1)])
    assert sorted(read) == ["bad-0", "bad-1", "dog-0", "dog-1"]
    assert [one["id"] for one in page.index["subjects"]] == [one["id"] for one in world.rows]
    assert page.index["subjects"][7]["error"] == ["Diverged", "loss is nan", False]
    assert sorted(page.blocks) == ["data-0", "data-1", "data-2", "data-3", "index"]
    assert "The first 2 failed subjects and the first 2 others" in page.text
    assert "The other 4 are listed" in page.text
    monkeypatch.undo()
    assert "are listed with their results" not in world.build().text


def test_missing_previews_are_shown_only_if_the_job_has_previews(world):
    world.publish("rex")
    world.write(summary_of(world.rows))
    world.store.remove(f"models/rex/{record('rex').revision}/previews")
    assert "no previews" in world.build().card()["note"]
    job = world.store.read_json("jobs/pets/job.json")
    job["job"]["previews"]["prompts"] = []
    world.store.write_json("jobs/pets/job.json", job)
    assert world.build().card()["note"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.042, "0.042 s"), (9.87, "9.9 s"), (41.4, "41 s"), (59.7, "1 min 0 s"),
     (725, "12 min 5 s"), (12_000, "3 h 20 min")],
)  # fmt: skip
def test_durations_are_formatted(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=1400,1200",
        f"--user-data-dir={tmp_path / 'browser'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_script_timeout(30)
    yield found
    found.quit()


def wait(browser, script):
    """Wait until a script returns a true value; return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(lambda one: one.execute_script(f"return {script}"))


def test_the_report_works_in_a_browser(world, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    for number in range(3):
        world.publish(f"dog-{number}")
    world.publish("tom", noun="cat", identifier="vyj", steps=100, fidelity=FIDELITY)
    for number in range(45):
        kind = "Diverged" if number % 2 else "LaneLost"
        error = {"kind": kind, "message": f"because {EVIL}", "retryable": True}
        world.add(f"bad-{number}", row(f"bad-{number}", "failed", error=error), num_photographs=0)
    world.write(summary_of(world.rows))
    report = world.store.local_path(build_report(world.store, "pets"))
    browser.get(report.as_uri())

    shown = browser.find_element(By.ID, "shown")
    search = browser.find_element(By.ID, "search")
    assert shown.text == "1 to 40 of 49 subjects"
    wait(browser, "document.querySelectorAll('#subject-dog-0 img').length === 6")
    wait(browser, "[...document.querySelectorAll('#subject-dog-0 img')].every(i => i.naturalWidth)")
    assert wait(browser, "document.querySelector('#phases svg')?.getAttribute('aria-label')")
    captions = browser.find_elements(By.CSS_SELECTOR, "#subject-dog-0 figcaption")
    assert [one.text for one in captions] == ["a photo of qzx dog on the beach", "a dog"]

    # The next page, and a link to a subject that is not on it.
    browser.find_element(By.CSS_SELECTOR, ".pager [aria-label='Next page']").click()
    assert shown.text == "41 to 49 of 49 subjects"
    browser.execute_script("location.hash = '#subject-tom'")
    wait(browser, "document.querySelector('#subject-tom.found svg.chart')")
    charts = browser.find_elements(By.CSS_SELECTOR, "#subject-tom svg.chart")
    labels = [chart.get_attribute("aria-label") for chart in charts]
    assert labels[1] == "Fidelity over 400 steps. identity 0.62drift 0.08step 100 is published"
    assert len(charts[1].find_elements(By.CSS_SELECTOR, "circle")) == 2 * len(FIDELITY)

    # Search, status, class noun, order.
    search.send_keys("/")
    search.clear()
    search.send_keys("vyj cat")
    wait(browser, "document.getElementById('shown').textContent === '1 subject'")
    search.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    browser.find_element(By.CSS_SELECTOR, "#status input[value=published] + span").click()
    wait(browser, "document.getElementById('shown').textContent === '4 subjects'")
    browser.execute_script(
        "const n = document.getElementById('noun'); n.value = 'cat';"
        "n.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert shown.text == "1 subject"
    browser.find_element(By.CSS_SELECTOR, "[data-cause=Diverged]").click()
    wait(browser, "document.getElementById('shown').textContent === '22 subjects'")
    wait(browser, "document.querySelector('#subject-bad-1 pre')?.textContent.includes('<script>')")

    # The viewer, by keyboard.
    browser.execute_script("location.hash = '#subject-dog-1'")
    wait(browser, "document.querySelectorAll('#subject-dog-1 .thumb').length === 6")
    browser.find_element(By.CSS_SELECTOR, "#subject-dog-1 .thumb").send_keys(Keys.ENTER)
    wait(
        browser, "document.querySelector('dialog[open] nav span')?.textContent === 'dog-1, 1 of 4'"
    )
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    wait(browser, "document.querySelectorAll('dialog[open] figure').length === 2")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(browser, "!document.querySelector('dialog[open]')")

    assert browser.execute_script("return window.hacked") is None
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(one => one.name.slice(0, 5))"
    )
    assert set(loaded) <= {"data:"}
    assert browser.get_log("browser") == []


def test_listed_subjects_work_in_a_browser(world, browser, monkeypatch):
    monkeypatch.setattr(report.contents, "MAX_DETAILED", 1)
    error = {"kind": "Diverged", "message": "loss is nan", "retryable": False}
    for number in range(2):
        world.publish(f"dog-{number}")
        world.add(f"bad-{number}", row(f"bad-{number}", "failed", error=error))
    world.write(summary_of(world.rows))
    browser.get(world.store.local_path(build_report(world.store, "pets")).as_uri())
    wait(browser, "document.querySelector('#subject-dog-0 .thumb')")
    hint = wait(browser, "document.querySelector('#subject-dog-1 .hint')?.textContent")
    assert hint == "Not in this page: dbray models show dog-1"
    assert wait(browser, "document.querySelector('#subject-bad-1 pre')?.textContent") == (
        "loss is nan"
    )
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("fields", "expected"), [
    ({"prior_digest": "a" * 64}, "200 of set aaaaaaaaaaaa"),
    ({"prior": Prior(kind="teacher")}, "none; the base is the teacher"),
    ({"prior": Prior(kind="teacher"), "class_noun": "none"}, "none"),
    ({"recipe": Recipe(prior_weight=0)}, "none"),
])  # fmt: skip
def test_the_facts_of_a_model_say_how_its_class_was_kept(fields, expected):
    assert _class_images(records.record(**fields)) == expected
