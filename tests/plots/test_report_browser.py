"""The report in a real browser: no script, no request, readable on a phone, by keyboard, by ear and in the dark.

It needs a Chromium (`apt-get install chromium`) and skips without one.
"""

import io
import itertools

import numpy as np
import pytest
from browser import Browser, find_browser
from PIL import Image
from report_support import CLASSES, page_of

PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed, so no page is looked at in a browser (apt-get install chromium)")
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(hostile, tmp_path_factory, browser):
    """The file of a report of a search, a retraining and its correction."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page_of(hostile / "search", hostile / "net <i>", hostile / "adjusted", mistakes=3))
    return path


def unfold(browser):
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")


def tree(browser):
    """The roles and names that the browser tells a screen reader, in reading order."""
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    value = lambda node, key: (node.get(key) or {}).get("value", "")
    return [(value(node, "role"), value(node, "name"), node) for node in nodes if not node["ignored"]]


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_there_is_no_error_and_no_request(browser, report, width):
    browser.open(report, width)
    unfold(browser)
    browser.value("new Promise(done => setTimeout(done, 100))")
    asked = [one["request"]["url"] for one in browser.events["Network.requestWillBeSent"]]
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert browser.events["Runtime.exceptionThrown"] == []
    assert browser.events["Log.entryAdded"] == [] and browser.events["Runtime.consoleAPICalled"] == []
    assert browser.events["Page.javascriptDialogOpening"] == []
    assert browser.value("document.scripts.length") == 0
    assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


def test_a_script_that_got_in_would_not_run(browser, report, tmp_path):
    """The content security policy is the second wall, behind the escaping."""
    broken = tmp_path / "broken.html"
    text = report.read_text().replace("<h1>", "<script>document.title = 'run'</script><img src='x.png'><h1>")
    broken.write_text(text)
    browser.open(broken)
    assert browser.value("document.title").startswith("Report of")
    assert browser.events["Log.entryAdded"], "the browser reports what it has blocked"


@pytest.mark.parametrize("width", [PHONE, 320, DESK])
def test_the_page_is_no_wider_than_the_screen(browser, report, width):
    browser.open(report, width)
    unfold(browser)
    assert browser.value("document.documentElement.scrollWidth") <= browser.value("window.innerWidth") == width
    wider = browser.value(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, pre, svg, .skip') &&"
        " one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))"
    )
    assert wider == []


def test_letters_are_large_enough_on_a_phone(browser, report):
    browser.open(report, PHONE)
    unfold(browser)
    sizes = browser.value(
        "[...document.querySelectorAll('p, li, td, th, dd, dt, figcaption, code, summary, span')]"
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 13
    letters = browser.value(
        "[...document.querySelectorAll('.picture')].map(one => Math.max(...[...one.querySelectorAll('text')]"
        ".map(text => text.getBoundingClientRect().height)))"
    )
    assert letters and min(letters) >= 9, "the titles of a picture"


def test_keyboard_alone_reaches_unfolds_and_skips(browser, report):
    browser.open(report)
    where = "document.activeElement.className || document.activeElement.tagName"
    browser.press("Tab", 9)
    assert browser.value(where) == "skip"
    browser.press("Enter", 13)
    assert browser.value("document.activeElement.id") == "content"
    reached = set()
    for _ in range(80):
        browser.press("Tab", 9)
        name = browser.value("document.activeElement.tagName")
        reached.add(name)
        if name == "SUMMARY" and not browser.value("document.activeElement.parentElement.open"):
            browser.press("Enter", 13)
            assert browser.value("document.activeElement.parentElement.open"), "a key unfolds it"
    assert {"SUMMARY", "PRE", "DIV"} <= reached
    shown = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.value(shown) == "solid", "what has the focus is seen"


def test_a_screen_reader_gets_landmarks_headings_in_order_and_a_name_for_every_picture(browser, report):
    browser.open(report)
    unfold(browser)
    nodes = tree(browser)
    roles = [role for role, _, _ in nodes]
    assert {"banner", "navigation", "main", "contentinfo"} <= set(roles)
    levels = [
        int(prop["value"]["value"])
        for role, _, node in nodes
        if role == "heading"
        for prop in node["properties"]
        if prop["name"] == "level"
    ]
    assert levels[0] == 1 and levels.count(1) == 1 and len(levels) > 8
    assert all(later <= before + 1 for before, later in itertools.pairwise(levels))
    for wanted in ("image", "figure", "table", "region", "navigation", "DisclosureTriangle"):
        named = [name for role, name, _ in nodes if role == wanted]
        assert named and all(named), f"every {wanted} has a name"
    pictures = [name for role, name, _ in nodes if role == "image"]
    assert any(name.startswith("Bar chart of ") for name in pictures)
    assert any(name.startswith("Graphs of the two cells") for name in pictures)
    headers = [name for role, name, _ in nodes if role == "rowheader"]
    assert all(" ".join(name.split()) in headers for name in CLASSES), "read as they are"


def luminance(colour):
    """Of WCAG: from 0 for black to 1 for white."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour[:3]) / 255]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# Every text on the page with its colour and that of what lies below it. In an SVG that is its own background.
TEXTS = """
(() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const paper = one => {
    for (; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const words = [...document.querySelectorAll('p, li, td, th, dd, dt, a, figcaption, code, summary, span, h1, h2, h3')];
  const told = words.map(one => [numbers(getComputedStyle(one).color), paper(one)]);
  const drawn = [...document.querySelectorAll('.picture:not(.on-white) svg text')].map(one => {
    const below = one.closest('svg').querySelector('path');
    return [numbers(getComputedStyle(one).fill), numbers(getComputedStyle(below).fill)];
  });
  return {told, drawn};
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_in_light_and_dark(browser, report, dark):
    browser.open(report, dark=dark)
    unfold(browser)
    texts = browser.value(TEXTS)
    assert len(texts["told"]) > 100 and len(texts["drawn"]) > 50
    assert min(contrast(*pair) for pair in texts["told"]) >= 4.5, "WCAG AA"
    assert min(contrast(*pair) for pair in texts["drawn"]) >= 4.5
    assert (luminance(texts["drawn"][0][1]) < 0.1) == dark, "a chart has the page's paper"


@pytest.mark.parametrize("dark", [False, True])
def test_the_paper_is_dark_where_it_is_asked_for(browser, report, dark):
    browser.open(report, dark=dark)
    seen = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("L"))
    assert (np.median(seen) < 60) == dark and seen.std() > 10
