"""What the pages say can be typed: every `ssfnas` command in them is one that today's program understands."""

import re
import shlex
from pathlib import Path

import pytest
from generator import inserts, links
from generator.commands import parsers

from ssfnas_cli.settings import MakeDatasetSettings, RetrainSettings, SearchSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples/plugin/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODELS = {"make-dataset": MakeDatasetSettings, "search": SearchSettings, "retrain": RetrainSettings}
ELSEWHERE = {"gumbel_softmax", "effective_number", "blur_conv_3x3", "hill_climbing"}  # plugins of the example package


def typed(page: Path) -> list[list[str]]:
    """The words of every `ssfnas` command in the page's blocks of shell, those of its pipes and loops included."""
    text = page.read_text(encoding="utf-8")
    console = "".join(re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    script = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    lines = [line[2:] for line in _joined(console) if line.startswith(("$ ", "> "))] + _joined(script)
    found = []
    for line in lines:
        line = line.replace("$seed", "0").replace("$relax", "sigmoid").replace(";", " ; ")
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word == "ssfnas" and (place == 0 or words[place - 1] in ("|", ";", "do", "&&", "source")):
                ends = (end for end in range(place, len(words)) if words[end] in ("|", ";", "&&", ">", "2>"))
                found.append(words[place + 1 : next(ends, len(words))])
    return found


def _joined(text: str) -> list[str]:
    """Its lines, those that go on in the next one joined with it."""
    return text.replace("\\\n", " ").replace("|\n", "| ").splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page):
    for words in typed(page):
        if words == ["--help"] or "COMMAND" in words:
            continue
        name, *arguments = words
        context = parsers()[name].make_context(
            name, list(arguments)
        )  # raises for an unknown flag or a lacking argument
        if name in MODELS and not ELSEWHERE & set(re.split(r"[ =,.]", " ".join(arguments))):
            options = {one.name for one in parsers()[name].params if one.param_type_name == "option"}
            flags = {key: context.params[key] for key in options & set(MODELS[name].model_fields)}
            flags = {key: value for key, value in flags.items() if isinstance(value, str | int | float)}
            presets, sets = context.params.get("presets") or (), context.params["sets"] or ()
            settings = load_settings(MODELS[name], preset=presets, sets=sets, flags=flags)
            if any("." in one for one in sets):  # an option of a plugin, which only the plugin knows
                settings.resolve_plugins()


def test_the_pages_are_full_of_commands():
    assert sum(len(typed(page)) for page in PAGES) > 80


def test_a_mark_is_filled_and_one_that_means_nothing_is_an_error():
    filled = inserts.fill("# A\n\n<!-- insert: exit-codes -->\n", "docs/a.md")
    assert "| 75 | " in filled and "insert" not in filled
    with pytest.raises(KeyError, match="nothing"):
        inserts.fill("<!-- insert: nothing -->", "docs/a.md")
    with pytest.raises(KeyError, match="No such section"):
        inserts.fill("<!-- insert: section README.md No such section -->", "docs/a.md")


@pytest.mark.parametrize(
    ("page", "written", "on_the_site"),
    [
        ("docs/a.md", "[b](use.md#predict-images)", "[b](use.md#predict-images)"),
        ("docs/reference/a.md", "[b](../use.md)", "[b](../use.md)"),
        ("docs/a.md", "[b](../CONTRIBUTING.md#rules)", "[b](contributing.md#rules)"),
        ("docs/reference/a.md", "[b](../../examples/slurm)", "[b](../slurm.md)"),
        ("docs/a.md", "[a test](../tests/conftest.py)", "a test (`tests/conftest.py`)"),
        ("docs/a.md", "[b](https://example.org/x.md) [c](#d)", "[b](https://example.org/x.md) [c](#d)"),
        ("docs/a.md", "[use.md](use.md)", "[Use a trained network](use.md)"),
        ("docs/a.md", "[docs/use.md](use.md#another-prior)", "[Another prior](use.md#another-prior)"),
        ("docs/a.md", "`[b](nowhere.md)`", "`[b](nowhere.md)`"),
        ("docs/a.md", "```python\n[b](nowhere.md)\n```\n", "```python\n[b](nowhere.md)\n```\n"),
    ],
)
def test_links_lead_to_pages(page, written, on_the_site):
    assert links.localise(written, page, page) == on_the_site


def test_links_of_an_inserted_text_are_those_of_its_file():
    assert links.localise("![b](docs/cells.png)", "README.md", "docs/reference/a.md") == "![b](../cells.png)"


def test_a_link_to_nothing_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md: links to b\.md"):
        links.localise("[b](b.md)", "docs/a.md", "docs/a.md")
