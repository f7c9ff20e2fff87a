"""The page at /playground, in a real browser (Debian's chromium), against a real server."""

from __future__ import annotations

import shutil
import time

import httpx
import pytest
from kit.scores import GOOD, scores
from kit.server import Server
from kit.serving import add_previews, perturbed, publish

from dbray.records import scores as score_layout
from dbray.records.models import Registry
from dbray.spec.recipe import Recipe
from dbray.spec.suites import SUITES
from dbray.storage.store import Store

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver"),
]
_PATIENCE = 90


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                     "--window-size=1280,1400"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_base):
    """A server without keys, and without Ray: the page knows only HTTP."""
    storage = tmp_path_factory.mktemp("registry")
    found = {"rex": None, "mia": scores(copies=0.9, identity=0.5), "tom": GOOD}
    for seed, name in enumerate(found):
        model = publish(storage, tiny_base, name, seed)
        add_previews(storage, model)
        if found[name]:
            files = score_layout.files_of(found[name], {})
            score_layout.annex(Store(str(storage)), model.name).publish(files)
    server = Server(storage, tiny_base)
    yield server
    server.close()


@pytest.fixture
def page(browser, site):
    browser.get(f"{site.url}/playground")
    wait(browser, lambda d: find(d, "#studio-title").text not in ("", "Choose a model"))
    return browser


def find(driver, css):
    return driver.find_element("css selector", css)


def find_all(driver, css):
    return driver.find_elements("css selector", css)


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, _PATIENCE, poll_frequency=0.05).until(condition)


def choose(page, name):
    find(page, f'.card[data-id="{name}"]').click()
    wait(page, lambda d: find(d, "#studio-title").text == name)


def search(page, site, name):
    """Filter for a newly published model: the server's list may be two seconds old."""
    listed = {"params": {"contains": name}}
    while len(httpx.get(f"{site.url}/v1/models", **listed).json()["data"]) != 1:
        time.sleep(0.05)
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    page.execute_script(script, find(page, "#filter"), name)
    # In one script, because all cards are replaced together.
    script = "return [...document.querySelectorAll('.card')].map(card => card.dataset.id)"
    wait(page, lambda d: d.execute_script(script) == [name])


def is_loaded(page, css):
    script = "return [...document.querySelectorAll(arguments[0])].map(i => i.naturalWidth > 0)"
    loaded = page.execute_script(script, css)
    return bool(loaded) and all(loaded)


def test_a_subject_is_drawn_next_to_the_base(page):
    choose(page, "rex")
    wait(page, lambda d: is_loaded(d, "#photographs img"))
    assert len(find_all(page, "#photographs img")) == 2
    steps = find(page, "#steps")
    steps.clear()
    steps.send_keys("40")
    find(page, "#go").click()
    wait(page, lambda d: find(d, "#results").get_attribute("aria-busy") == "false"
         and find(d, "#status").text.startswith("Weights from"))  # fmt: skip
    for section in ("#subject-results", "#base-results"):
        states = [f.get_attribute("data-state") for f in find_all(page, f"{section} figure")]
        assert states == ["completed", "completed"]
        wait(page, lambda d, s=section: is_loaded(d, f"{s} img"))
    pictures = [i.get_attribute("src") for i in find_all(page, "#results img")]
    assert len(set(pictures)) == 4
    assert "zx" not in find(page, "#results").text


def test_the_gallery_shows_every_model_and_filters(page, site):
    names = [card.get_attribute("data-id") for card in find_all(page, ".card")]
    assert names[0] == "base"
    assert {"rex", "mia", "tom"} <= set(names)
    wait(page, lambda d: is_loaded(d, '.card[data-id="mia"] img'))
    site.publish("latecomer", 70)  # not on the page: the filter sends a request
    search(page, site, "latecomer")
    # The chosen model is not shown, but the keyboard can still enter the gallery.
    assert find(page, ".card").get_property("tabIndex") == 0
    find(page, "#filter").send_keys("nothing-like-it")
    wait(page, lambda d: find(d, "#no-models").is_displayed())


def test_typing_sends_one_request(page):
    asked = page.execute_async_script("""
        const done = arguments[0], real = window.fetch, filter = document.getElementById("filter");
        const asked = [];
        window.fetch = (path, options) => {
            if (path.startsWith("/v1/models?")) asked.push(path);
            if (path.includes("contains=teapot")) done(asked.length);
            return real(path, options);
        };
        for (const typed of ["t", "te", "tea", "teap", "teapo", "teapot"]) {
            filter.value = typed;
            filter.dispatchEvent(new Event("input"));
        }""")
    assert asked == 1


def test_late_responses_do_not_replace_the_last_choice(page):
    page.execute_script("""
        const real = window.fetch;
        const gate = new Promise((resolve) => { window.openGate = resolve; });
        window.fetch = async (path, options) => {
            const response = await real(path, options);
            if (path !== "/v1/models/rex") return response;
            const body = await response.json();
            response.json = async () => {
                await gate;
                setTimeout(() => { window.isTaken = true; });  // after all that awaits the body
                return body;
            };
            return response;
        };""")
    find(page, '.card[data-id="rex"]').click()
    choose(page, "mia")
    page.execute_script("window.openGate()")
    wait(page, lambda d: d.execute_script("return window.isTaken"))
    assert find(page, "#studio-title").text == "mia"
    assert '"model":"mia"' in find(page, "#curl").text


def test_controls_are_disabled_during_drawing(page):
    choose(page, "rex")
    find(page, "#steps").send_keys("150")
    find(page, "#n").clear()
    find(page, "#n").send_keys("4")
    find(page, "#go").click()
    choose(page, "mia")
    is_running = find(page, "#results").get_attribute("aria-busy") == "true"
    assert find(page, "#go").is_enabled() != is_running
    if is_running:
        find(page, "#stop").click()
    wait(page, lambda d: find(d, "#go").is_enabled())


def test_the_base_is_drawn_at_the_subject_s_size(page, site):
    record = site.publish("large", 71)
    larger = record.model_copy(update={"id": "larger", "recipe": Recipe(resolution=64)})
    weights = {"unet.safetensors": perturbed(site.base, 71)}
    Registry(Store(str(site.storage))).publish(larger, weights)
    search(page, site, "larger")
    choose(page, "larger")
    find(page, "#go").click()
    wait(page, lambda d: find(d, "#status").text.startswith("Weights from"))
    for section in ("#subject-results", "#base-results"):
        wait(page, lambda d, s=section: is_loaded(d, f"{s} img"))
        script = "return document.querySelector(arguments[0]).naturalWidth"
        assert page.execute_script(script, f"{section} img") == 64


def test_pictures_are_requested_by_revision(page, site):
    choose(page, "rex")
    wait(page, lambda d: is_loaded(d, "#photographs img"))
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    pictures = [name for name in page.execute_script(script) if "/previews/" in name]
    assert pictures
    assert all("%40" in name for name in pictures)


def test_the_curl_line_follows_the_form(page, site):
    choose(page, "mia")
    prompt = find(page, "#prompt")
    prompt.clear()
    prompt.send_keys("it's {subject}")
    text = find(page, "#curl").text
    assert f"{site.url}/v1/images/generations" in text
    assert '"model":"mia"' in text
    assert "it'\\''s {subject}" in text


def test_previews_have_their_prompts(page):
    choose(page, "rex")
    wait(page, lambda d: is_loaded(d, "#previews img"))
    assert find(page, "#previews figcaption").text == "a photo of {subject} on the beach"


def draw(page, **fields):
    """Fill in fields of the form, and draw."""
    for name, value in fields.items():
        page.execute_script(
            "document.getElementById(arguments[0]).value = arguments[1]", name, value
        )
    find(page, "#go").click()


def test_images_have_the_name_of_their_model_and_exact_seeds(page):
    choose(page, "rex")
    draw(page, steps="2", seed="9007199254740993")  # 2^53 + 1
    wait(page, lambda d: find(d, "#status").text.startswith("Weights from"))
    choose(page, "mia")
    assert find(page, "#subject-results h3").text == "rex"
    assert find(page, "#base-results h3").text == "The untouched base, beside rex"
    captions = [one.text for one in find_all(page, "#subject-results figcaption")]
    assert captions == ["seed 9007199254740993", "seed 9007199254740994"]
    assert '"seed":9007199254740993}' in find(page, "#curl").text


def test_the_base_is_offered_prompts_without_a_subject(page):
    choose(page, "rex")
    assert "{subject}" in find(page, "#prompt").get_property("value")
    choose(page, "base")
    assert find(page, "#prompt").get_property("value") == "a photo of a dog on the beach"
    assert "{subject}" not in find(page, "form#ask").text
    choose(page, "rex")
    assert find(page, "#prompt").get_property("value") == "a photo of a {subject} on the beach"


def test_long_names_are_whole(page, site):
    site.publish("backpack-with-a-long-name-0123456789-0123456789", 72)
    search(page, site, "backpack-with-a-long-name-0123456789-0123456789")
    script = (
        "const n = document.querySelector('.card .name'); return [n.scrollWidth, n.clientWidth]"
    )
    needed, width = page.execute_script(script)
    assert needed <= width


def test_on_a_phone_the_prompt_is_above_the_gallery(page):
    size = page.get_window_size()
    page.set_window_size(390, 844)
    try:
        assert find(page, "#prompt").location["y"] < find(page, "#models").location["y"]
        script = "return document.documentElement.scrollWidth <= innerWidth"
        assert page.execute_script(script)
    finally:
        page.set_window_size(size["width"], size["height"])


@pytest.fixture
def keyed(tmp_path, tiny_base):
    """A server with keys: no Ray is needed for it."""
    publish(tmp_path / "registry", tiny_base, "rex", 1)
    server = Server(tmp_path / "registry", tiny_base, tmp_path)
    yield server
    server.close()


def test_a_key_is_kept_once_it_has_worked(browser, keyed):
    def enter(key):
        find(browser, "#key").clear()
        find(browser, "#key").send_keys(key)
        find(browser, "#key-form button").click()

    stored = "return sessionStorage.getItem('dbray-key')"
    browser.get(f"{keyed.url}/playground")
    wait(browser, lambda d: find(d, "#key-form").is_displayed())
    enter("schl\u00fcssel-\u043a\u043b\u044e\u0447")
    wait(browser, lambda d: find(d, "#status").text == "The key is not valid.")
    assert browser.execute_script(stored) is None
    enter(keyed.keys["acme"])
    wait(browser, lambda d: find(d, "#studio-title").text == "rex")
    assert browser.execute_script(stored) == keyed.keys["acme"]
    browser.get_log("browser")  # the 401s were wanted


def test_an_error_is_shown_and_the_form_works_again(page):
    choose(page, "rex")
    page.execute_script("document.getElementById('steps').value = '9999'")
    page.execute_script("document.getElementById('ask').noValidate = true")
    find(page, "#go").click()
    wait(page, lambda d: "num_inference_steps" in find(d, "#status").text)
    assert "error" in find(page, "#status").get_attribute("class")
    assert find_all(page, "#results .blank") == []
    assert find(page, "#go").is_enabled()


def test_every_field_has_a_label_and_keys_choose_models(page):
    script = """return [...document.querySelectorAll('input, textarea, button, img')].filter(
        e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')
               || e.hasAttribute('alt'))).map(e => e.id)"""
    assert page.execute_script(script) == []
    choose(page, "rex")
    page.execute_script("document.querySelector('.card[aria-checked=true]').focus()")
    from selenium.webdriver.common.keys import Keys

    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    wait(page, lambda d: find(d, "#studio-title").text != "rex")


def test_the_browser_logged_no_errors(page):
    # The test of errors causes a 400.
    logged = [entry for entry in page.get_log("browser") if "400" not in entry["message"]]
    assert [entry for entry in logged if entry["level"] == "SEVERE"] == []


def test_the_gallery_sorts_by_scores_and_the_studio_shows_them_with_faults(page):
    wait(page, lambda d: find(d, "#sorting").is_displayed())
    find(page, "#sort option[value=identity]").click()
    cards = "return [...document.querySelectorAll('.card')].map(card => card.innerText)"
    wait(page, lambda d: "identity 0.700" in d.execute_script(cards)[1])
    assert "identity 0.500" in page.execute_script(cards)[2]
    choose(page, "mia")
    wait(page, lambda d: "copies its photographs" in find(d, "#flags").text)
    assert "ceiling 0.800" in find(page, "#scores").text
    choose(page, "tom")
    wait(page, lambda d: not find(d, "#flags").is_displayed())


def test_a_suite_gives_the_prompts_of_the_class_noun(page):
    choose(page, "rex")
    find(page, "#suite option[value=accessories]").click()
    chips = "return [...document.querySelectorAll('#ideas button')].map(chip => chip.innerText)"
    assert tuple(page.execute_script(chips)) == SUITES["accessories"].live
