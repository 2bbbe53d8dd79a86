"""The generated reference has every command, flag, setting, plugin and exit code, and a word about each."""

import re
from pathlib import Path

import pytest
from generator import commands, settings
from generator.markdown import code, table, text
from generator.schemas import Described
from pydantic import BaseModel, Field

from registry import REGISTRIES
from ssfnas_cli.settings import (
    AdjustSettings,
    MakeDatasetSettings,
    PerturbationSettings,
    RetrainSettings,
    SearchSettings,
)
from ssfnas_cli.settings.base import Settings, flatten

ROOT = Path(__file__).resolve().parents[2]


def rows(markdown: str) -> list[list[str]]:
    """The cells of every row of the tables, headers included."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"]


def test_every_command_has_a_section_with_all_its_arguments_and_flags():
    sections = re.split(r"^## ", commands.details(), flags=re.MULTILINE)[1:]
    by_name = {section.partition("\n")[0]: section for section in sections}
    assert list(by_name) == list(commands.parsers())
    for name, parser in commands.parsers().items():
        assert f"(#{name})" in commands.overview()
        for parameter in parser.params:
            (row,) = [row for row in rows(by_name[name]) if _names(parameter) & _codes(row[0])]
            assert row[1] and parameter.help, f"{name}: {parameter.name} has no word of help"


def _names(parameter):
    """What the reference calls a flag or an argument."""
    option = parameter.param_type_name == "option"
    return set(parameter.opts) if option else {(parameter.metavar or parameter.name.upper()).rstrip(".")}


def _codes(cell):
    return {word.strip("[].").split()[0].rstrip(".") for word in re.findall("<code>(.*?)</code>", cell)}


def test_every_setting_of_every_command_is_described_once_where_its_command_finds_it():
    sections = re.split(r"^## ", settings.tables(), flags=re.MULTILINE)[1:]
    shared = ["search and retrain", "Self-supervised views", "A self-supervised loss beside the supervised one"]
    execution = "How a run is executed"
    readers = {
        MakeDatasetSettings: ["make-dataset"],
        SearchSettings: [
            *("search", "A federated search", "Partial channels", "The cost of the derived network"),
            *(*shared, execution),
        ],
        RetrainSettings: ["retrain", *shared, execution],
        AdjustSettings: ["adjust", execution],
        PerturbationSettings: ["derive --rule perturbation", execution],
    }
    by_title = {section.partition("\n")[0]: rows(section)[2:] for section in sections}
    assert set(by_title) == {title for titles in readers.values() for title in titles}
    for model, titles in readers.items():
        listed = [row for title in titles for row in by_title[title]]
        names = [row[0].partition("<br>")[0] for row in listed]
        assert sorted(names) == sorted(code(name) for name in _settings_of(model)), model.__name__
        for name, values, _, what in listed:
            assert values and what, f"{name} is not described"


def _settings_of(model: type[Settings], prefix: str = "") -> list[str]:
    """Every setting by its path."""
    found = []
    for name, field in model.model_fields.items():
        inner = isinstance(field.default, Settings)
        found += _settings_of(type(field.default), f"{prefix}{name}.") if inner else [prefix + name]
    return found


def test_the_presets_are_those_that_the_program_resolves():
    from ssfnas_cli.settings import load_settings

    tables = re.split(r"^### .*$", settings.presets(), flags=re.MULTILINE)[1:]
    for model, markdown in zip((SearchSettings, RetrainSettings), tables, strict=True):
        header, _, *body = rows(markdown)
        for place, preset in enumerate(header[1:4], 1):
            resolved = flatten(load_settings(model, preset=preset[6:-7]).model_dump(mode="json"))
            for row in body:
                name = row[0][6:-7]
                if name in resolved:  # not the option of a loss, which is resolved later
                    assert row[place] == code(_shown(resolved[name])), (preset, name)


def _shown(value):
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value


def test_every_built_in_plugin_is_listed_and_every_option_described():
    sections = re.split(r"^## ", settings.plugins(), flags=re.MULTILINE)[1:]
    by_kind = {section.partition("\n")[0]: rows(section)[2:] for section in sections}
    assert list(by_kind) == list(REGISTRIES)
    for kind, registry in REGISTRIES.items():
        listed = {name: row for row in by_kind[kind] for name in re.findall("<code>(.*?)</code>", row[0])}
        builtin = {name for name in registry.names() if registry.get(name).origin == "builtin"}
        assert set(listed) == builtin
        for name, row in listed.items():
            assert row[1], f"{kind} {name} has no summary"
            for option, field in registry.get(name).options.model_fields.items():
                assert field.description, f"option {option} of {kind} {name} has no description"
                assert f"{code(field.alias or option)} (" in row[2]


def test_the_exit_codes_are_those_that_the_readme_states():
    stated = (ROOT / "README.md").read_text().partition("Exit codes:")[2].partition("\n\n")[0]
    listed = [row[0] for row in rows(commands.exit_codes())[2:]]
    assert listed == re.findall(r"(?:^|, )(\d+) ", " ".join(stated.split()))


class Sample(BaseModel):
    """A model with every form of a field."""

    size: int = Field(4, ge=2, le=65_536, multiple_of=2, description="a *b* of `c`")
    share: float = Field(0.5, gt=0, lt=1)
    far: int = Field(0, lt=2**63)
    words: list[str] = Field(["a", "b"])


def test_bounds_and_defaults_are_told_in_words():
    described = Described(Sample)
    assert described.values("size") == "a whole number from 2 to 65,536, even"
    assert described.values("share") == "a number above 0, below 1"
    assert described.values("far") == "a whole number below 2<sup>63</sup>"
    assert described.default("words") == f"{code('a')}, {code('b')}"
    assert described.what("size") == "a &#42;b&#42; of <code>c</code>"


@pytest.mark.parametrize("value", ["<script>", "a|b", "a_b", "[x](y)", "*", "`"])
def test_words_of_the_program_are_no_markup(value):
    shown = text(value)
    assert not set("<|_[]*`") & set(shown)
    assert len(table(["a"], [[shown]]).splitlines()[2].split("|")) == 3
