"""The studio's page in a real browser, against the real server with the packaged weights."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export3d.provenance.verify import verify
from export3d.video import probe
from tests.group_photo import group_photo

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
pytest.importorskip("fastapi", reason="needs the extra studio")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (extra dev)")

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
LEAST_FOLLOWING = 0.95
"""Correlation of the drag with the yaw that the tracker finds in the shown pictures."""
SHOWN_WITHIN_S = 3.0
PATIENCE_MS = 60_000
Page = Any


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a studio that runs as a user starts it."""
    folder = tmp_path_factory.mktemp("studio")
    command = [sys.executable, "-m", "export3d", "studio", "--port", "0", "--no-browser", "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--engine", "torch"], stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stderr is not None
        said = ""
        try:
            for line in server.stderr:
                said += line
                if found := re.search(r"http://\S+", line):
                    yield found.group()
                    break
            else:
                pytest.fail(f"the studio did not start: {said}")
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH (looked for chromium, chromium-browser and google-chrome)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, studio: str) -> Iterator[Page]:
    """The page with the bundled portrait; no test may leave an error in its console or ask another host."""
    yield from _page(browser, studio)


def _page(browser: Any, studio: str, **context: Any) -> Iterator[Page]:
    opened = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
    page, problems = opened.new_page(), []
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda problem: problems.append(str(problem)))
    page.on(
        "console",
        lambda line: (
            problems.append(line.text) if line.type == "error" and "Failed to load resource" not in line.text else None
        ),
    )
    page.on("request", lambda sent: problems.append(sent.url) if _foreign(sent.url, studio) else None)
    page.goto(studio)
    page.wait_for_selector("#stage.shown")
    yield page
    opened.close()
    assert problems == []


def _foreign(url: str, studio: str) -> bool:
    return not url.startswith((studio, "blob:", "data:"))


def _angles(page: Page) -> tuple[float, float, float]:
    """Yaw, pitch and roll of the shown picture, as the page asked for them."""
    shown = page.locator("#stage").evaluate("stage => ({...stage.dataset})")
    return float(shown["yaw"]), float(shown["pitch"]), float(shown["roll"])


def _settled(page: Page, **angles: float) -> None:
    """Wait until the stage shows a full picture with these angles."""
    wanted = "".join(f'[data-{name}="{value:g}"]' for name, value in angles.items())
    page.wait_for_selector(f'#stage[data-quality="full"]{wanted}')


def _picture(page: Page) -> np.ndarray:
    """The shown picture, uint8 (H, W, 3)."""
    url = page.locator("#picture").evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.array(image.convert("RGB"))


def _upload(page: Page, file: Any) -> None:
    """Choose a portrait and wait until its picture is shown."""
    before = page.locator("#stage").get_attribute("data-portrait")
    page.set_input_files("#photo-file", file)
    page.wait_for_selector(f'#stage[data-quality="full"]:not([data-portrait="{before}"])')


def _middle(page: Page) -> tuple[float, float, float]:
    box = page.locator("#stage").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]


def _as_png(picture: np.ndarray, name: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def test_the_first_visit_shows_a_head_that_looks_toward_the_mouse(browser: Any, studio: str) -> None:
    waits = []
    for _ in range(2):  # the better of two: the machine may be busy with other tests
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto(studio)
        page.wait_for_selector("#stage.shown")
        waits.append(time.perf_counter() - begun)
    assert min(waits) < SHOWN_WITHIN_S, waits
    x, y, width = _middle(page)
    page.mouse.move(x + 0.4 * width, y)
    page.wait_for_selector('#stage[data-quality="full"]:not([data-yaw="0"])')
    assert _angles(page)[0] > 10
    page.close()


def test_reduced_motion_keeps_the_head_still_under_the_mouse(browser: Any, studio: str) -> None:
    for page in _page(browser, studio, reduced_motion="reduce"):
        x, y, width = _middle(page)
        page.mouse.move(x + 0.4 * width, y)
        page.wait_for_timeout(400)
        assert _angles(page) == (0, 0, 0)


def test_the_picture_follows_the_drag(page: Page, astronaut_path: Path) -> None:
    from export3d.camera import head_angles
    from export3d.face.tracker import Tracker

    _upload(page, astronaut_path)
    x, y, width = _middle(page)
    page.mouse.move(x, y)
    page.mouse.down()
    yaws, found = [], []
    tracker = Tracker()
    for step in (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3):
        page.mouse.move(x + step * width, y, steps=2)
        yaws.append(round(10 * 75 * step) / 10)
        page.wait_for_selector(f'#stage[data-yaw="{yaws[-1]:g}"]')
        track = tracker.track_image(_picture(page), "head")
        found.append(float(head_angles(track.motion.camera[0])[0]))
    page.mouse.up()
    assert np.corrcoef(yaws, found)[0, 1] >= LEAST_FOLLOWING, found
    page.mouse.wheel(0, 100)
    _settled(page, yaw=yaws[-1], roll=3)
    page.mouse.dblclick(x, y)
    _settled(page, yaw=0, pitch=0, roll=0)


def test_keys_turn_the_head_and_undo_takes_it_back(page: Page) -> None:
    page.locator("#stage").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    _settled(page, yaw=6, pitch=3, roll=-3)
    page.keyboard.press("Control+z")
    _settled(page, yaw=6, pitch=3, roll=0)
    page.click("#undo")
    page.click("#redo")
    _settled(page, yaw=6, pitch=3, roll=0)
    page.locator("#stage").press("Home")
    _settled(page, yaw=0, pitch=0, roll=0)


def test_sliders_move_the_face(page: Page) -> None:
    from export3d.face.tracker import Tracker
    from export3d.motion.arkit import ARKIT52

    before = _picture(page)
    page.locator("#slider-jawOpen").fill("0.7")
    sync_api.expect(page.locator('output[for="slider-jawOpen"]')).to_have_text("0.70")
    page.locator("#slider-yaw").fill("12")
    _settled(page, yaw=12)
    jaws = [
        Tracker().track_image(each, "head").motion.expression[0, ARKIT52.index("jawOpen")]
        for each in (before, _picture(page))
    ]
    assert jaws[1] > jaws[0] + 0.2
    page.locator("summary", has_text="Basis").click()
    page.locator("#slider-basis-3").press("End")
    page.click("#still-command")
    command = page.locator(".command textarea").first.input_value()
    assert command.startswith("export3d edit ")
    for part in ("--set jawOpen=0.7", "--basis 3=+", "--yaw 12"):
        assert part in command
    page.locator(".slider", has=page.locator("#slider-jawOpen")).locator("button").click()
    sync_api.expect(page.locator(".slider", has=page.locator("#slider-jawOpen")).locator("button")).to_be_disabled()


def test_an_animation_is_watched_downloaded_and_marked(page: Page, face_video: Path, tmp_path: Path) -> None:
    page.click("#tab-motion")
    page.set_input_files("#motion-file", face_video)
    page.wait_for_selector(".trim img")
    page.locator(".trim-handle.end").press("ArrowLeft")
    page.locator(".trim-handle.start").press("ArrowRight")
    page.click("#tab-output")
    page.locator("#output").get_by_label("Face only").check()
    page.click("#tab-motion")
    page.click("#animate")
    card = page.locator(".card")
    card.locator("progress[value]").wait_for()
    card.locator(".preview:not([hidden])").wait_for()
    page.wait_for_selector('.card[data-state="done"]')
    assert page.locator("#viewer-video").evaluate("video => video.src").endswith("/video.mp4")
    with page.expect_download() as download:
        card.get_by_text("MP4", exact=True).click()
    made = tmp_path / "made.mp4"
    download.value.save_as(made)
    report = verify(made)
    assert (report.result, report.mark_belongs) == ("marked", True)
    info = probe(made)
    assert info.has_audio
    assert info.duration_s == pytest.approx(24 / 25 - 0.2, abs=0.09)
    for name in ("Sheet", "Motion", "Poster"):
        assert card.get_by_text(name, exact=True).is_visible()
    page.set_input_files("#verify-file", made)
    sync_api.expect(page.locator(".verdict h3")).to_have_text("made.mp4: marks found")
    page.click("#viewer-close")
    assert page.locator("#viewer").is_hidden()


def test_a_job_can_be_cancelled(page: Page) -> None:
    page.click("#tab-motion")
    page.locator('input[name="motion"][value="expressions"]').check()
    page.click("#animate")
    page.locator(".card progress[value]").wait_for()
    page.locator(".card").get_by_text("Cancel").click()
    page.wait_for_selector('.card[data-state="cancelled"]')
    page.locator(".card").get_by_text("Remove").click()
    assert page.locator(".card").count() == 0


def test_a_full_queue_is_said_and_tried_again_until_the_user_stops(page: Page) -> None:
    for number in range(4):
        page.click("#tab-motion")
        page.click("#animate")
        sync_api.expect(page.locator(".card")).to_have_count(min(number + 1, 3))  # the page shows the results then
    status = page.locator("#motion [role=status]")
    sync_api.expect(status).to_contain_text("Trying again in")
    status.get_by_role("button").click()
    sync_api.expect(status).to_be_empty()
    page.click("#tab-results")
    assert page.locator(".card").count() == 3
    for button in page.locator(".card").get_by_text("Cancel").all()[::-1]:
        button.click()
    sync_api.expect(page.locator('.card[data-state="cancelled"]')).to_have_count(3)


def test_the_still_is_saved_with_its_marks(page: Page, tmp_path: Path) -> None:
    page.locator("#slider-yaw").fill("10")
    _settled(page, yaw=10)
    with page.expect_download() as download:
        page.click("#save-still")
    download.value.save_as(tmp_path / "still.png")
    assert verify(tmp_path / "still.png").result == "marked"


def test_an_orbit_is_refused_with_a_sentence_beside_its_button(page: Page) -> None:
    page.click("#tab-motion")
    page.locator('input[name="make"][value="orbit"]').check()
    page.get_by_label("Round, s").fill("600")
    page.click("#animate")
    alert = page.locator("#motion [role=alert]")
    sync_api.expect(alert).to_contain_text("seconds")
    assert page.locator(".card").count() == 0


@pytest.mark.parametrize(("name", "body"), [("garbage.jpg", b"not a photo"), ("empty.jpg", b""), ("black.png", None)])
def test_a_photo_that_cannot_be_used_is_answered_with_a_sentence(page: Page, name: str, body: bytes | None) -> None:
    file = (
        _as_png(np.zeros((64, 64, 3), np.uint8), name)
        if body is None
        else {"name": name, "mimeType": "image/jpeg", "buffer": body}
    )
    page.set_input_files("#photo-file", file)
    alert = page.locator("#photo-error")
    sync_api.expect(alert).to_contain_text(name)
    assert alert.get_attribute("role") == "alert"
    assert page.locator("#stage").get_attribute("data-portrait") == "bundled"


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_can_be_dropped_and_pasted(page: Page, astronaut_path: Path, way: str) -> None:
    page.evaluate(
        """([way, body]) => {
            const bytes = Uint8Array.from(atob(body), (sign) => sign.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "me.png", {type: "image/png"}));
            const event = way === "drop"
                ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
                : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
            document.body.dispatchEvent(event);
        }""",
        [way, base64.b64encode(astronaut_path.read_bytes()).decode()],
    )
    page.wait_for_selector('#stage:not([data-portrait="bundled"])')
    assert page.locator("#photo-error").inner_text() == ""


def test_a_face_of_a_group_is_chosen_on_the_photo(page: Page, astronaut: np.ndarray) -> None:
    _upload(page, _as_png(group_photo(astronaut), "group.png"))
    faces = page.locator("#faces-photo button")
    assert faces.count() == 3
    first = _picture(page)
    sync_api.expect(page.locator("#faces-photo [aria-pressed=true]")).to_have_text("1")
    faces.nth(2).click()
    sync_api.expect(page.locator("#faces-photo [aria-pressed=true]")).to_have_text("3")
    page.wait_for_selector('#stage[data-quality="full"][data-face="3"]')
    assert np.abs(_picture(page)[:256, :256].astype(float) - first[:256, :256]).mean() > 3


def test_what_is_warned_of_a_photo_is_shown_until_another_one_is_chosen(page: Page, astronaut: np.ndarray) -> None:
    small = np.asarray(Image.fromarray(astronaut).resize((200, 200)))
    _upload(page, _as_png(small, "small.png"))
    warnings = page.locator("#photo-warnings li")
    sync_api.expect(warnings.first).to_contain_text("small.png: the face is only")
    _upload(page, _as_png(astronaut, "large.png"))
    sync_api.expect(warnings).to_have_count(0)


def test_the_webcam_takes_a_photo_and_the_answer_is_shown(page: Page) -> None:
    """Chromium's fake camera shows no face, which the server answers with a sentence."""
    page.click("#photo-camera")
    page.locator("#camera-take:enabled").click()
    sync_api.expect(page.locator("#photo-error")).to_contain_text("webcam.png")
    assert page.locator("#camera").is_hidden()


def test_a_recording_of_the_webcam_becomes_a_driving_video(page: Page) -> None:
    page.click("#tab-motion")
    page.get_by_text("Record yourself").click()
    take = page.locator("#camera-take:enabled")
    take.click()
    page.wait_for_timeout(1500)
    take.click()
    page.wait_for_selector(".trim img")
    assert page.locator('input[name="motion"][value="own"]').is_checked()


def test_a_lost_connection_is_said_and_mended(page: Page, studio: str) -> None:
    sockets = []

    def pass_on(socket: Any) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    page.route_web_socket(re.compile("/api/head"), pass_on)
    page.reload()
    page.wait_for_selector("#stage.shown")
    sockets[0].close()
    page.wait_for_selector('#connection[data-state="lost"]')
    page.wait_for_selector('#connection[data-state="connected"]')
    page.locator("#slider-yaw").fill("9")
    _settled(page, yaw=9)
    assert len(sockets) == 2


def test_a_studio_with_another_token_is_told_from_a_lost_connection(page: Page) -> None:
    sockets = []

    def pass_on(socket: Any) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    page.route_web_socket(re.compile("/api/head"), pass_on)
    page.reload()
    page.wait_for_selector("#stage.shown")
    page.route("**/api/info", lambda route: route.fulfill(status=401, json={"error": "the token is wrong"}))
    sockets[0].close()
    page.wait_for_selector("#head-error:has-text('the token is wrong')")


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark"), (1920, "light")]
)
def test_everyone_can_use_it(page: Page, width: int, scheme: str, face_video: Path) -> None:
    """axe finds nothing serious in any tab, and nothing is wider than the window."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 850})
    page.set_input_files("#photo-file", {"name": "a.png", "mimeType": "image/png", "buffer": b"not a photo"})
    page.locator("#photo-error:not(:empty)").wait_for()
    page.set_input_files("#motion-file", face_video)
    page.wait_for_selector(".trim img", state="attached")
    for tab in ("face", "motion", "output", "results"):
        page.click(f"#tab-{tab}")
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], json.dumps(serious, indent=1)
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
