"""`make docs`: the site is built, every link and anchor in it leads somewhere, and it asks nobody for anything."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install 'ssfnas[docs]'")
pytest.importorskip("material", reason="the theme is not installed: pip install 'ssfnas[docs]'")


def build(config: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(site)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser loads with a page, and what the page says."""

    def __init__(self, page: Path):
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("href"):
            self.loads.append(given["href"])

    def handle_data(self, data):
        self.words.append(data)


def test_every_page_is_there_and_asks_nobody_for_anything(site):
    pages = sorted(site.rglob("*.html"))
    written = [path for path in (ROOT / "docs").rglob("*.md")]
    assert len([page for page in pages if page.name != "404.html"]) == len(written) > 15
    for page in pages:
        loads = Loaded(page).loads
        assert loads and not [one for one in loads if re.match(r"(https?:)?//", one)], page
        if page.name != "404.html":  # whose links are those of the server's root
            assert all((page.parent / one.partition("?")[0]).is_file() for one in loads if not one.startswith("data:"))
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_reference_is_in_the_built_pages(site):
    for page, words in {
        "commands": ["ssfnas make-dataset [OPTIONS]", "--max-time H:MM:SS", "The output exists and differs"],
        "settings": ["views.min_scale", "0.03", "a whole number from 1 to 1,000,000", "2"],
        "plugins": ["label_aware_smoothing", "torchvision's network of that name"],
        "files": ["pixel_range", "pruned_accuracy_alpha_half", "chosen_on", "alphas_sha256"],
    }.items():
        text = " ".join("".join(Loaded(site / "reference" / f"{page}.html").words).split())
        assert all(word in text for word in words), page
    assert not list(site.rglob("*.py")), "the generator is no part of the site"
    assert "search_index" in {path.stem for path in (site / "search").iterdir()}


def test_an_anchor_that_is_not_there_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[a](#nowhere)\n")
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nnav: [index.md]\nextra_css: []\nhooks: []\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0 and "#nowhere" in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: it shows that the search works without a server")
def test_the_search_works_on_the_files_without_a_server(site):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    address = f"{(site / 'reference' / 'files.html').as_uri()}?q=balanced_softmax"
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=240)
    found = re.findall(r'<a href="([^"]*)" class="md-search-result__link', done.stdout)
    assert any(link.startswith((site / "longtail.html").as_uri()) for link in found), done.stderr
