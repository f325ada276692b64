"""The page in a real Chromium: type, click, wait, see the image; draw a mask; keyboard alone; a narrow screen."""

import base64
import io
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.pipeline.record import read_record
from ldm.web.service import Service
from tests.support.chromium import CHROMIUM, Browser, browser
from tests.support.tiny_generate import save_model, save_model_of_large_images
from tests.support.tiny_images import photo
from tests.support.tiny_web import listening, working

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: sudo apt install chromium")

SHOWN = "[...document.querySelectorAll('.job:first-child .cell img:not(.preview)')]"
FINISHED = f"{SHOWN}.length && {SHOWN}.every((each) => each.complete && each.naturalWidth > 0)"
READY = "document.querySelector('#status').textContent === 'ready'"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with working(save_model(tmp_path_factory.mktemp("model"))) as made:
        yield made


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with listening(service) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Browser]:
    chromium.resize(1280, 900)
    chromium.open(url)
    chromium.run("localStorage.clear()")
    chromium.open(url)
    chromium.wait(READY)
    chromium.errors.clear()
    yield chromium
    assert chromium.errors == []


def shown_png(page: Browser, number: int = 0) -> bytes:
    """The file behind an image of the newest job."""
    script = f"""fetch({SHOWN}[{number}].src).then((answer) => answer.blob()).then((blob) => new Promise((resolve) => {{
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.readAsDataURL(blob);
    }}))"""
    return base64.b64decode(page.run(script).partition(",")[2])


CHOOSE = """(name) => {
    const models = document.querySelector('#models');
    models.value = name;
    models.dispatchEvent(new Event('change'));
}"""
"""A select opens a window of the system, which a browser without one does not have."""


def fill(page: Browser, selector: str, text: str) -> None:
    page.click(selector)
    page.run(f"document.querySelector('{selector}').select()")
    page.type(text)


def test_type_click_wait_and_see_the_image(page: Browser, tmp_path: Path) -> None:
    fill(page, "#prompt", "a red apple")
    fill(page, "#set-seed", "7")
    fill(page, "#set-num_images", "2")
    page.click("#generate")
    page.wait(FINISHED)
    page.wait(READY)
    assert page.run("document.querySelector('.job h2').textContent") == "a red apple"
    (tmp_path / "second.png").write_bytes(shown_png(page, 1))
    record = read_record(tmp_path / "second.png")
    assert (record.prompt, record.seed) == ("a red apple", 8)
    page.screenshot(tmp_path / "page.png")
    if "LDM_SCREENSHOTS" in os.environ:
        (Path(os.environ["LDM_SCREENSHOTS"]) / "tiny.png").write_bytes((tmp_path / "page.png").read_bytes())


@pytest.mark.slow
def test_a_mistake_is_said_in_one_line(page: Browser) -> None:
    fill(page, "#prompt", "a")
    page.run("document.querySelector('#more').open = true")
    fill(page, "#grid-x", "sed=1,2")
    page.click("#generate")
    page.wait("document.querySelector('#message').textContent")
    assert "did you mean 'seed'" in page.run("document.querySelector('#message').textContent")
    assert all("status of 400" in each for each in page.errors)
    page.errors.clear()


@pytest.mark.slow
def test_a_running_job_shows_previews_and_is_stopped(page: Browser) -> None:
    fill(page, "#prompt", "a")
    fill(page, "#set-num_inference_steps", "250")
    fill(page, "#set-num_images", "64")
    page.click("#generate")
    page.wait("document.querySelector('.job .preview')")
    page.click("#stop")
    page.wait(READY)
    assert "cancelled" in page.run("document.querySelector('.job-head p').textContent")


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(page: Browser) -> None:
    page.run("document.querySelector('#prompt').focus()")
    page.type("a blue square")
    page.press("Enter", ctrl=True)
    page.wait(FINISHED)
    page.run("document.querySelector('.cell').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#viewer').open")
    page.press("Escape")
    page.wait("!document.querySelector('#viewer').open")
    page.run("document.querySelector('#source').open = true")
    page.run("document.querySelector('#prompt').focus()")
    seen = set()
    for _ in range(60):
        page.press("Tab")
        seen.add(page.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"generate", "set-seed", "set-scheduler", "image", "reuse", "reset"} <= seen


@pytest.mark.slow
def test_a_mask_is_drawn_and_the_rest_stays(page: Browser, tmp_path: Path) -> None:
    source = photo(64, 64, seed=4)
    source.save(tmp_path / "source.png")
    page.run("document.querySelector('#source').open = true")
    page.choose_file("#image", tmp_path / "source.png")
    page.wait("!document.querySelector('#drawing').hidden")
    left, top, width, height = page.place_of("#mask")
    page.run("document.querySelector('#brush').value = 8")
    middle = top + height / 2
    page.drag([(left + width * 0.25, middle), (left + width * 0.5, middle), (left + width * 0.75, middle)])
    assert not page.run("document.querySelector('[data-setting=mask_feather]').hidden")
    fill(page, "#prompt", "a")
    page.click("#generate")
    page.wait(FINISHED)
    png = shown_png(page)
    (tmp_path / "made.png").write_bytes(png)
    assert read_record(tmp_path / "made.png").task == "blended-inpaint"
    made, given = np.asarray(Image.open(io.BytesIO(png))), np.asarray(source)
    changed = (made != given).any(axis=2)
    assert changed[32, 17:47].any() and not changed[:24].any() and not changed[40:].any()


@pytest.mark.slow
def test_settings_of_an_image_are_used_again(page: Browser, tmp_path: Path) -> None:
    fill(page, "#prompt", "a red apple")
    fill(page, "#set-seed", "11")
    page.run("document.querySelector('#set-scheduler').value = 'euler_a'")
    page.click("#generate")
    page.wait(FINISHED)
    first = shown_png(page)
    (tmp_path / "first.png").write_bytes(first)
    page.click("#reset")
    fill(page, "#prompt", "something else")
    page.choose_file("#reuse", tmp_path / "first.png")
    page.wait("document.querySelector('#prompt').value === 'a red apple'")
    assert page.run("document.querySelector('#set-scheduler').value") == "euler_a"
    page.click("#generate")
    page.wait("document.querySelectorAll('.job').length === 2")
    page.wait(FINISHED)
    assert shown_png(page) == first


@pytest.mark.slow
def test_the_gallery_is_there_after_a_reload_and_only_for_this_browser(page: Browser, url: str) -> None:
    fill(page, "#prompt", "a red apple")
    page.click("#generate")
    page.wait(FINISHED)
    page.open(url)
    page.wait(FINISHED)
    page.run("localStorage.clear()")
    page.open(url)
    page.wait(READY)
    assert page.run("document.querySelectorAll('.job').length") == 0


@pytest.mark.slow
def test_a_model_is_chosen_and_the_form_follows(chromium: Browser, tmp_path: Path) -> None:
    models = [save_model(tmp_path), save_model_of_large_images(tmp_path)]
    with working(models[0], more=models[1:]) as both, listening(both) as url:
        chromium.resize(1280, 900)
        chromium.open(url)
        chromium.wait(READY)
        chromium.errors.clear()
        assert chromium.run("document.querySelector('#set-height').placeholder") == "16"
        fill(chromium, "#prompt", "a red apple")
        fill(chromium, "#set-seed", "7")
        chromium.run(f"({CHOOSE})('large')")
        chromium.wait("document.querySelector('#set-height').placeholder === '256'")
        chromium.click("#generate")
        chromium.wait(FINISHED)
        data = shown_png(chromium)
        (tmp_path / "made.png").write_bytes(data)
        record = read_record(tmp_path / "made.png")
        assert (record.model_id, record.seed, record.settings.width) == ("large", 7, 256)
        if "LDM_SCREENSHOTS" in os.environ:
            chromium.screenshot(Path(os.environ["LDM_SCREENSHOTS"]) / "models.png")
        chromium.open(url)
        chromium.wait("document.querySelector('#models').value === 'large'")
        chromium.run(f"({CHOOSE})('one')")
        chromium.wait("document.querySelector('#set-height').placeholder === '16'")
        chromium.choose_file("#reuse", tmp_path / "made.png")
        chromium.wait("document.querySelector('#prompt').value === 'a red apple'")
        assert chromium.run("document.querySelector('#models').value") == "large"
        chromium.resize(320, 700)
        assert chromium.run("document.documentElement.scrollWidth") <= 320
        chromium.run("localStorage.clear()")
        assert chromium.errors == []


@pytest.mark.slow
def test_a_narrow_screen_has_no_sideways_scrolling(page: Browser) -> None:
    for width in (320, 375, 768):
        page.resize(width, 700)
        page.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        assert page.run("document.documentElement.scrollWidth") <= width


ACCESSIBLE = """[...document.querySelectorAll('button, input, select, textarea, a[href], canvas')].filter((each) => {
    const label = each.labels?.length || each.getAttribute('aria-label') || each.textContent.trim();
    return !label && !each.closest('[hidden]');
}).map((each) => each.outerHTML)"""


@pytest.mark.slow
def test_every_control_has_a_name(page: Browser) -> None:
    assert page.run(ACCESSIBLE) == []
    assert page.run("[...document.images].every((each) => each.hasAttribute('alt'))")
    ids = page.run("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Browser, scheme: str) -> None:
    """The page with an image, every part open, by the rules of axe-core."""
    script = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    fill(page, "#prompt", "a")
    page.click("#generate")
    page.wait(FINISHED)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.run(f"{script}; 0")
    violations = page.run("axe.run().then((found) => found.violations)")
    page.call("Emulation.setEmulatedMedia", features=[])
    assert [each["help"] for each in violations if each["impact"] in ("serious", "critical")] == []
