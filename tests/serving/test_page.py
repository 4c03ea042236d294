"""The page, walked through as a person would, in a real browser on the real service with the tiny run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image
from serving import ENDLESS, QUEUE, engine_of, live, wait_until

from sdscratch.run_folder import RunFolder
from sdscratch.serving.app import create_app
from sdscratch.serving.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: make browser, or apt-get install chromium"),
    pytest.mark.xdist_group("page"),  # one browser and one server for all
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000  # ms; machines are slow at times
SOON = 4_000  # ms: before the page looks again of itself
LAPTOP = (1280, 800)

Open = Callable[..., "playwright.Page"]
expect = playwright.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tiny_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The tiny run, to write in, with pictures of a second step."""
    run = RunFolder(shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("runs") / "tiny"))
    shutil.copytree(run.path / "samples" / "step_00000030", run.path / "samples" / "step_00000010", dirs_exist_ok=True)
    return run


@pytest.fixture
def open_page(browser: playwright.Browser, server: Server) -> Iterator[Open]:
    """A page in a browser that has never been here, when it is ready to draw. Nothing may go wrong in its scripts unseen."""
    contexts, faults = [], []

    def open_page(size=LAPTOP, scheme="light", address="", base=server.address, ready=True) -> playwright.Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
        page.goto(f"{base}/{address}")
        if ready:
            expect(page.locator("#health")).to_have_attribute("data-state", re.compile("ready|busy"))
            expect(page.locator("#model")).to_have_value("tiny")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def draw(page: playwright.Page, prompt: str = "a red circle", **fields: str) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")


def expect_pictures(page: playwright.Page, count: int) -> None:
    expect(page.locator("#tiles img")).to_have_count(count)


def natural_size(page: playwright.Page, picture: str) -> list[int]:
    return page.locator(picture).evaluate(
        "async (image) => (await image.decode(), [image.naturalWidth, image.naturalHeight])"
    )


# Drawing


def test_a_prompt_gives_pictures_that_can_be_taken_home_and_drawn_again(open_page, server, tmp_path):
    page = open_page()
    hosts = []
    page.on("request", lambda request: hosts.append(request.url))
    draw(page, seed="7", n="2")
    expect_pictures(page, 2)
    expect(page.locator("#about-settings")).to_contain_text("seed\N{NO-BREAK SPACE}7")
    assert natural_size(page, "#picture") == [32, 32]
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "a_red_circle_7.png"
    download.value.save_as(tmp_path / "home.png")
    about = Image.open(tmp_path / "home.png").text
    assert (about["prompt"], about["seed"]) == ("a red circle", "7")

    page.fill("#steps", "9")
    page.fill("#prompt", "something else")
    page.keyboard.press("Escape")
    page.click("#reuse")
    assert [page.input_value(f"#{name}") for name in ("prompt", "steps", "seed", "n")] == [
        "a red circle",
        "4",
        "7",
        "1",
    ]
    page.click("#go")
    expect_pictures(page, 3)
    first, again = (page.locator("#tiles img").nth(i).get_attribute("src") for i in (0, 1))
    assert first == again  # the newest, and the first of two drawn at once
    assert all(url.startswith((server.address, "data:")) for url in hosts)


def test_a_newcomer_draws_what_the_model_has_learnt_by_one_click(open_page):
    page = open_page()
    example = page.locator("#examples button").first
    prompt = example.text_content()
    example.click()
    expect_pictures(page, 1)
    expect(page.locator("#about-prompt")).to_have_text(prompt)
    expect(example).to_be_hidden()


def test_the_form_is_what_the_server_can_do(open_page, server):
    page, config = open_page(), httpx.get(f"{server.address}/config").json()
    for name in ("steps", "cfg_scale", "seed", "n"):
        assert float(page.get_attribute(f"#{name}", "max")) == config["limits"][name]["max"]
    assert page.locator("#sampler option").all_text_contents() == config["samplers"]
    assert page.locator("#size option").count() == len(config["sizes"])
    assert [page.input_value(f"#{name}") for name in ("steps", "cfg_scale", "sampler")] == ["4", "3", "euler"]


def test_a_seed_is_kept_when_locked_and_another_when_not(open_page):
    page = open_page()
    first = page.input_value("#seed")
    draw(page)
    expect_pictures(page, 1)
    assert page.input_value("#seed") != first
    page.click("#lock")
    locked = page.input_value("#seed")
    draw(page)
    expect_pictures(page, 2)
    assert page.input_value("#seed") == locked
    page.click("#dice")
    assert page.input_value("#seed") != locked


def test_a_drawing_shows_its_steps_and_what_it_becomes_and_can_be_cancelled(open_page):
    page = open_page()
    draw(page, steps=str(ENDLESS))
    expect(page.locator("#progress-text")).to_contain_text(f"of {ENDLESS}")
    expect(page.locator("#picture")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#health")).to_have_text("Drawing", timeout=SOON)
    page.click("#cancel")
    expect(page.locator("#progress")).to_be_hidden(timeout=PATIENCE)
    expect(page.locator("#health")).to_have_text("Ready on cpu", timeout=SOON)
    expect(page.locator("#go")).to_have_text("Draw")
    expect_pictures(page, 0)
    draw(page, steps="3")
    expect_pictures(page, 1)


def test_a_reload_finds_the_drawing_under_way_and_the_pictures_drawn(open_page):
    page = open_page()
    page.click("#theme")
    draw(page)
    expect_pictures(page, 1)
    draw(page, "a blue ring", steps=str(ENDLESS))
    expect(page.locator("#progress-text")).to_contain_text(f"of {ENDLESS}")
    page.reload()
    expect(page.locator("#progress-text")).to_contain_text(f"of {ENDLESS}")
    assert (page.input_value("#prompt"), page.input_value("#steps")) == ("a blue ring", str(ENDLESS))
    assert page.get_attribute("html", "data-theme") == "dark"
    page.click("#cancel")
    expect(page.locator("#progress")).to_be_hidden(timeout=PATIENCE)
    expect_pictures(page, 1)
    page.reload()
    expect(page.locator("#about-prompt")).to_have_text("a red circle")


def test_a_drawing_that_ends_while_nobody_looks_is_there_afterwards(open_page, caller):
    page = open_page()
    draw(page, steps="30")
    expect(page.locator("#progress")).to_be_visible()
    page.goto("about:blank")
    wait_until(lambda: caller.get("/health").json()["queue"] == 0)
    page.go_back()
    expect_pictures(page, 1)
    page.reload()
    expect_pictures(page, 1)
    expect(page.locator("#progress")).to_be_hidden()


def test_each_tab_has_its_own_pictures_and_those_of_closed_tabs(open_page):
    page = open_page()
    draw(page)
    expect_pictures(page, 1)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#model")).to_have_value("tiny")
    expect_pictures(other, 0)
    draw(other, "a blue ring")
    expect_pictures(other, 1)
    page.reload()
    expect(page.locator("#about-prompt")).to_have_text("a red circle")
    expect_pictures(page, 1)
    other.close()
    page.reload()
    expect_pictures(page, 2)


def test_a_tab_opened_from_another_has_its_own_pictures_and_drawings(open_page):
    """It begins with a copy of what the other keeps for its session."""
    page = open_page()
    draw(page)
    expect_pictures(page, 1)
    draw(page, "a blue ring", steps=str(ENDLESS))
    expect(page.locator("#progress-text")).to_contain_text(f"of {ENDLESS}")
    with page.context.expect_page() as opened:
        page.evaluate("void window.open(location.href)")
    other = opened.value
    expect(other.locator("#model")).to_have_value("tiny")
    expect_pictures(other, 0)
    assert not other.is_visible("#progress")
    page.click("#cancel")
    draw(other, steps="3")
    expect_pictures(other, 1)
    other.on("dialog", lambda dialog: dialog.accept())
    other.click("#clear")
    expect_pictures(other, 0)
    page.reload()
    expect_pictures(page, 1)


# What goes wrong


def test_values_that_do_not_fit_are_said_at_their_fields_in_words_for_people(open_page):
    page = open_page()
    draw(page, steps="99999", n="2.5", cfg_scale="")
    expect(page.locator("#steps-fault")).to_have_text(f"Expected a whole number from 1 to {ENDLESS}")
    expect(page.locator("#cfg_scale-fault")).to_have_text("Expected a number from 0 to 30")
    expect(page.locator("#n-fault")).to_have_text("Expected a whole number from 1 to 8")
    expect(page.locator("#steps")).to_be_focused()
    assert page.get_attribute("#steps", "aria-describedby") == "steps-fault"
    page.fill("#n", "2")
    expect(page.locator("#n-fault")).to_be_empty()
    draw(page, "  ", steps="4", n="1", cfg_scale="2.25")
    expect(page.locator("#prompt-fault")).to_have_text("Say what to draw")
    expect(page.locator("#steps-fault")).to_be_empty()
    draw(page, "x" * 2001)
    expect(page.locator("#prompt-fault")).to_have_text("2,001 characters, expected at most 2,000")
    draw(page)
    expect_pictures(page, 1)
    expect(page.locator("[aria-invalid]")).to_have_count(0)


def test_a_cost_too_high_a_full_queue_and_a_server_gone_are_told_apart(open_page, caller):
    page, notice = open_page(), lambda text: expect(page.locator("#notice")).to_contain_text(text)
    draw(page, steps=str(ENDLESS))
    expect(page.locator("#progress-text")).to_contain_text(f"of {ENDLESS}")
    job = page.evaluate("JSON.parse(sessionStorage.getItem('job')).id")
    page.context.set_offline(True)
    page.click("#cancel")  # nobody hears it, and the page lets go all the same
    expect(page.locator("#progress")).to_be_hidden()
    notice("The server does not answer.")
    expect(page.locator("#health")).to_have_text("No answer")
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_be_empty()
    caller.delete(f"/jobs/{job}")
    page.evaluate("document.getElementById('size').append(new Option('huge', '1024x1024'))")
    page.select_option("#size", "1024x1024")
    draw(page, n="8")
    expect(page.locator("#steps-fault")).to_contain_text("ask for fewer steps or pictures, or smaller ones")
    page.select_option("#size", "32x32")
    page.fill("#n", "1")
    body = {"prompt": "a red circle", "steps": ENDLESS}
    jobs = [caller.post("/jobs", json=body).json()["id"] for _ in range(QUEUE + 1)]
    draw(page)
    notice("Too many are waiting already. Try again in a while.")
    expect(page.locator("#go")).to_contain_text("Again in")
    for job in jobs:
        caller.delete(f"/jobs/{job}")
    expect(page.locator("#go")).to_have_text("Draw", timeout=SOON)  # long before it was thought to be free
    expect(page.locator("#notice")).to_be_empty()


def test_a_wait_in_the_queue_is_shown(open_page, caller):
    page = open_page()
    job = caller.post("/jobs", json={"prompt": "a red circle", "steps": ENDLESS}).json()["id"]
    draw(page)
    expect(page.locator("#progress-text")).to_have_text("1 before yours")
    caller.delete(f"/jobs/{job}")
    expect_pictures(page, 1)


def test_a_token_is_asked_for_a_model_can_be_chosen_and_a_server_that_stops_says_so(run, open_page):
    engine = engine_of(run.path, run.path.parent)
    with live(create_app(engine, token="open sesame"), engine) as server:
        page = open_page(base=server.address, ready=False)
        for token in ("\N{SNOWMAN}", "guessed", " open sesame"):  # what no header can carry does not leave the page
            page.fill("#token-value", token)
            page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_value("tiny")
        expect(page.locator("#token")).to_be_hidden()
        page.select_option("#model", label="tiny, step 30")
        expect(page.locator("#health")).to_have_attribute("data-state", "ready")
        draw(page)
        expect_pictures(page, 1)
        expect(page.locator("#about-settings")).to_contain_text("tiny,\N{NO-BREAK SPACE}step\N{NO-BREAK SPACE}30")
        engine.stop_soon()
        draw(page)
        expect(page.locator("#notice")).to_contain_text("The server is stopping")


def test_a_model_that_is_being_loaded_is_waited_for(run, open_page):
    engine = engine_of(run.path, run.path.parent)
    with live(create_app(engine), engine) as server:
        engine.status = "loading"
        page = open_page(base=server.address, ready=False)
        expect(page.locator("#health")).to_have_text("Loading the model")
        draw(page)
        expect(page.locator("#go")).to_have_attribute("aria-disabled", "true")
        engine.status = "ready"
        expect(page.locator("#go")).to_have_attribute("aria-disabled", "false")
        assert (page.input_value("#prompt"), page.input_value("#steps")) == ("a red circle", "4")


# Looking


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    while page.evaluate("document.activeElement.id") != "prompt":
        page.keyboard.press("Tab")
    for prompt in ("a red circle", "a blue ring"):
        page.keyboard.press("Control+A")
        page.keyboard.type(prompt)
        page.keyboard.press("Enter")
        expect(page.locator("#about-prompt")).to_have_text(prompt)
    while page.evaluate("document.activeElement.id") != "expand":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#about-prompt")).to_have_text("a red circle")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-next")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-caption")).to_contain_text("a blue ring")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#comparison")).to_be_visible()
    assert page.locator("#differences th").all_text_contents()[0] == "Prompt"
    assert_accessible(page)


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_has_all_of_it_with_the_settings_in_a_drawer(open_page, width):
    page = open_page((width, 700))
    expect(page.locator("#steps")).to_be_hidden()
    page.click("#open-settings")
    page.fill("#steps", "99999")
    page.keyboard.press("Escape")
    expect(page.locator("#steps")).to_be_hidden()
    draw(page)
    expect(page.locator("#steps")).to_be_focused(timeout=PATIENCE)  # what is wrong in the drawer opens it
    page.fill("#steps", "3")
    page.keyboard.press("Enter")
    expect_pictures(page, 1)
    for address in ("#draw", "#runs"):
        page.goto(page.url.split("#")[0] + address)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert_accessible(page)


@pytest.mark.parametrize("size", [LAPTOP, (390, 844)])
def test_nothing_jumps_while_pictures_are_drawn(open_page, size):
    page = open_page(size)
    page.evaluate(
        "() => { window.jumps = 0; new PerformanceObserver((list) => { for (const jump of list.getEntries()) "
        "if (!jump.hadRecentInput) window.jumps += jump.value }).observe({ type: 'layout-shift', buffered: true }) }"
    )
    for count in (1, 2):
        draw(page)
        expect_pictures(page, count)
    assert page.evaluate("window.jumps") < 0.02  # what is called good is below 0.1


def test_the_page_of_runs_shows_pictures_and_curves_that_grow(open_page, run):
    page = open_page(address="#runs")
    expect(page.locator("#run h2")).to_have_text("tiny")
    assert page.url.endswith("#runs/tiny")
    assert page.locator(".chart h3").all_text_contents()[:2] == ["Loss", "Loss by timestep"]
    assert page.locator(".chart").nth(1).locator(".keys span").count() == 4
    page.locator(".samples input").focus()
    page.keyboard.press("Home")
    expect(page.locator(".samples output")).to_have_text("step 10")
    assert natural_size(page, ".samples img")[0] > 32
    run.append_metrics({"step": 40, "train/loss": 0.125})
    expect(page.locator(".chart svg").first).to_have_attribute("aria-label", re.compile("training 0.125"))


def test_a_picture_of_a_run_that_is_damaged_is_said_to_be_so(open_page, run):
    file = run.path / "samples" / "step_00000010" / "ema.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    page = open_page(address="#runs/tiny")
    page.locator(".samples input").focus()
    page.keyboard.press("Home")
    expect(page.locator(".samples .hint")).to_have_text(
        "This picture cannot be read. It is damaged, or still being written."
    )
    expect(page.locator(".samples img")).to_be_hidden()
    file.write_bytes(whole)
    run.append_metrics({"step": 50, "train/loss": 0.125})
    expect(page.locator(".samples img")).to_be_visible()  # at the page's next look, after 5 s
    expect(page.locator(".samples .hint")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, scheme):
    page = open_page(scheme=scheme)
    for count in (1, 2):
        draw(page)
        expect_pictures(page, count)
    assert_accessible(page)
    draw(page, steps="99999")
    expect(page.locator("#steps-fault")).not_to_be_empty()
    page.click("#compare")
    assert_accessible(page)
    page.goto(page.url + "#runs")
    page.wait_for_selector(".chart svg path")
    assert_accessible(page)


def assert_accessible(page: playwright.Page) -> None:
    found = axe.Axe().run(page).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert not grave, "\n".join(f"{fault['id']}: {[node['html'] for node in fault['nodes']]}" for fault in grave)
