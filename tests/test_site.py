"""The built book in a real browser, served from a sub-path: what a reader's machine would do with it.

Needs Chromium (or Chrome) with its driver, and ``make book``. Pictures of every page are left in
``book/_build/screenshots``.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "book/_build/html"
SCREENSHOTS = BUILT.parent / "screenshots"
PAGES = sorted(path.stem for path in BUILT.glob("*.html") if path.stem != "index") or ["intro"]
CHAPTERS = [path.stem for path in sorted((ROOT / "book").glob("*.ipynb"))]
PHONE, DESK = (390, 844), (1280, 900)  # pixels


def missing() -> str:
    """What a run here would lack, or nothing."""
    if not any(shutil.which(name) for name in ("chromium", "google-chrome")) or not shutil.which("chromedriver"):
        return "no Chromium with chromedriver here (on Debian: apt install chromium chromium-driver)"
    if not (BUILT / "index.html").is_file():
        return "no built book here: make book"
    sources = [path for path in (ROOT / "book").rglob("*") if path.is_file() and "_build" not in path.parts]
    newer = [path.name for path in sources if path.stat().st_mtime > (BUILT / "searchindex.js").stat().st_mtime]  # written by every build
    return f"the built book is older than {newer[0]}: make book" if newer else ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing: the tests' output is for the tests."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the book, which does not lie at the top of its host."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "some").mkdir()
    (folder / "some/where").symlink_to(BUILT, target_is_directory=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/some/where/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars", "force-prefers-reduced-motion"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # no other host can be reached
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@dataclass(frozen=True)
class Visit:
    """What was seen of one page."""

    title: str
    errors: list[str]
    requests: list[str]
    headings: list[tuple[int, str]]
    images: list[tuple[str, str]]  # file, alternative text
    links: list[str]
    nameless: list[str]  # controls without a name for a screen reader
    barriers: list[str]  # what breaks a rule of the WCAG, in light and in dark
    phone_width: int
    too_wide: list[str]


SEE = """
const seen = (node) => node.checkVisibility();
const named = (node) => node.getAttribute("aria-label") || node.title || node.innerText || node.labels?.length || node.placeholder;
return {
  title: document.title,
  headings: [...document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)")].filter(seen).map((node) => [Number(node.tagName[1]), node.innerText]),
  images: [...document.images].map((node) => [node.src.slice(0, 200), node.alt]),
  links: [...document.links].map((node) => node.href),
  nameless: [...document.querySelectorAll("button, input, select")].filter(seen).filter((node) => !named(node)).map((node) => node.outerHTML.slice(0, 200)),
};
"""
WIDE = """
const scrolls = (node) => node && node !== document.body && (getComputedStyle(node).overflowX !== "visible" || scrolls(node.parentElement));
return [...document.querySelectorAll("main *")].filter((node) => node.getBoundingClientRect().right > innerWidth + 1 && !scrolls(node.parentElement))
  .map((node) => node.outerHTML.slice(0, 120));
"""


RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}  # contrast, names, roles, languages


def barriers(browser: Any) -> Iterator[str]:
    """What axe-core finds against the Web Content Accessibility Guidelines, levels A and AA."""
    from axe_core_python.selenium import Axe

    for theme in ("dark", "light"):
        browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
        for rule in Axe().run(browser, options=RULES)["violations"]:
            yield from (f"{theme}: {rule['help']}: {node['html'][:200]}" for node in rule["nodes"])


def size(browser: Any, width: int, height: int) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})


@pytest.fixture(scope="module")
def visit(browser: Any, base: str) -> Any:
    """Opens a page, once a test run."""

    @functools.cache
    def see(name: str) -> Visit:
        size(browser, *DESK)
        for log in ("browser", "performance"):
            browser.get_log(log)  # what came before is not this page's
        browser.get(f"{base}{name}.html")
        found = browser.execute_script(SEE)
        browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
        found["barriers"] = list(barriers(browser))
        size(browser, *PHONE)
        width, wide = browser.execute_script("return document.documentElement.scrollWidth"), browser.execute_script(WIDE)
        browser.save_screenshot(str(SCREENSHOTS / f"{name}-phone.png"))
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        return Visit(errors=errors, requests=requests, phone_width=width, too_wide=wide, **found)

    return see


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_without_an_error(name: str, visit: Any) -> None:
    seen = visit(name)
    assert seen.title
    assert not seen.errors


@pytest.mark.parametrize("name", PAGES)
def test_page_asks_no_other_host(name: str, visit: Any, base: str) -> None:
    requests = visit(name).requests
    assert f"{base}{name}.html" in requests
    assert [url for url in requests if not url.startswith((base, "data:", "blob:"))] == []


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_in_order(name: str, visit: Any) -> None:
    levels = [level for level, _ in visit(name).headings]
    assert levels[:1] == [1]
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels)), visit(name).headings


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_finds_words(name: str, visit: Any) -> None:
    assert [file for file, text in visit(name).images if not text.strip()] == []
    assert visit(name).nameless == []


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_closed_to_anyone(name: str, visit: Any) -> None:
    assert visit(name).barriers == []


def test_a_barrier_is_seen(browser: Any, base: str) -> None:
    browser.get(f"{base}intro.html")
    browser.execute_script("document.querySelector('main p').style.color = '#999'")
    assert any(barrier.startswith("light: Elements must have sufficient color contrast") for barrier in barriers(browser))


@pytest.mark.parametrize("name", PAGES)
def test_no_page_scrolls_sideways_on_a_phone(name: str, visit: Any) -> None:
    assert visit(name).phone_width <= PHONE[0], visit(name).too_wide


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_book_lead_somewhere(name: str, visit: Any, base: str) -> None:
    for link in visit(name).links:
        address, place = urldefrag(link)
        if address.startswith(base):
            target = BUILT / unquote(address.removeprefix(base).partition("?")[0] or "index.html")
            assert target.is_file(), link
            assert not place or target.suffix != ".html" or f'id="{unquote(place)}"' in read(target), link


@functools.cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [page for page in PAGES if page in CHAPTERS])
def test_notebook_opens_on_colab(name: str, visit: Any) -> None:
    project = re.search(r"url: https://github\.com/(\S+)", read(ROOT / "book/_config.yml"))
    assert project
    wanted = f"https://colab.research.google.com/github/{project[1]}/blob/main/book/{name}.ipynb"
    colab = [link for link in visit(name).links if "colab" in link]
    assert colab.count(wanted) >= 2, "the launch button, and the link under the title"
    assert set(colab) == {wanted}


@pytest.mark.parametrize("name", PAGES)
def test_a_shared_link_shows_title_and_picture(name: str, visit: Any) -> None:
    if name in ("genindex", "py-modindex", "search"):
        pytest.skip("made by Sphinx, nobody shares it")
    properties = dict(re.findall(r'<meta property="(og:\w+)" content="([^"]*)"', read(BUILT / f"{name}.html")))
    assert {"og:title", "og:url", "og:description", "og:image"} <= properties.keys()
    assert len(properties["og:description"]) > 40
    assert properties["og:url"].endswith(f"/{name}.html")


def until(browser: Any, condition: str) -> Any:
    """The value of a JavaScript expression, as soon as it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda b: b.execute_script(f"return {condition}"))


def test_the_address_leads_to_the_introduction(browser: Any, base: str) -> None:
    browser.get(base)
    assert until(browser, "location.href.endsWith('/some/where/intro.html')")


def test_search_finds_self_distillation(browser: Any, base: str) -> None:
    size(browser, *DESK)
    browser.get(f"{base}search.html?q=self-distillation")
    found = until(browser, "[...document.querySelectorAll('ul.search li a')].map((a) => a.href)")
    assert any("04_self_distillation" in link for link in found)
    browser.save_screenshot(str(SCREENSHOTS / "search-results.png"))


BRIGHTNESS = """[["body", "article p"], [".sdap-sweep", ".sdap-sweep output"]].filter((pair) => pair.every((what) => document.querySelector(what)))
  .map(([paper, ink]) => [getComputedStyle(document.querySelector(paper)).backgroundColor, getComputedStyle(document.querySelector(ink)).color]
    .map((color) => color.match(/[\\d.]+/g).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b))"""  # as the WCAG define it


@pytest.mark.parametrize("name", ["01_too_many_channels", "05_one_run", "play", "api"])
def test_dark_mode_switches(name: str, browser: Any, base: str) -> None:
    size(browser, *DESK)
    browser.get(f"{base}{name}.html")
    themes = set()
    for _ in range(3):  # light, dark, and what the system says
        theme = browser.execute_script("return document.documentElement.dataset.theme")
        for paper, ink in until(browser, BRIGHTNESS):
            assert (paper < ink) == (theme == "dark")
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7, "contrast of the text"
        if theme == "dark" and theme not in themes:
            for i, figure in enumerate(browser.find_elements("css selector", "article img, .sdap-sweep")[:3]):
                browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
                browser.save_screenshot(str(SCREENSHOTS / f"{name}-dark-{i}.png"))
        themes.add(theme)
        browser.execute_script("document.querySelector('.theme-switch-button').click()")
    assert themes == {"light", "dark"}


def test_the_film_of_the_gates_plays(browser: Any, base: str) -> None:
    browser.get(f"{base}05_one_run.html")
    picture = "document.querySelector('.animation img')?.src"
    first = until(browser, picture)
    assert first.startswith("data:image/png")
    browser.execute_script("document.querySelector('.animation button[aria-label=\"Last frame\"]').click()")
    last = until(browser, picture)
    assert last != first
    slider = browser.find_element("css selector", ".animation input[type=range]")
    slider.send_keys("\ue011")  # Home
    assert browser.execute_script(f"return {picture}") == first
    browser.execute_script("document.querySelector('.animation button[aria-label=\"Play\"]').click()")
    assert until(browser, f"{picture} !== arguments[0] && true".replace("arguments[0]", f"{first!r}"))


def test_the_slider_redraws_everything(browser: Any, base: str) -> None:
    browser.get(f"{base}play.html")
    state = """const find = (what) => document.querySelector(`.sdap-sweep ${what}`);
      return [find("output").textContent, find(".sdap-widths").ariaLabel, find(".sdap-curve").ariaLabel, find("table").innerText]"""
    slider = browser.find_element("id", "sdap-rate")
    before = browser.execute_script(state)
    assert before[0].startswith("Rate 0 %")
    slider.send_keys("\ue010")  # End
    after = browser.execute_script(state)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert slider.get_attribute("aria-valuetext").startswith("95 % of the parameters gone")
    slider.send_keys("\ue012")  # arrow to the left
    assert browser.execute_script(state)[0].startswith("Rate 90 %")
    browser.save_screenshot(str(SCREENSHOTS / "play-moved.png"))
