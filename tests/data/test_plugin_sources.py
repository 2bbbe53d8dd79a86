"""A source that a third party brings."""

import numpy as np
import pytest
from pydantic import Field

from registry import SOURCES, Options, PluginError, SourceFacts
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.data.sources.base import ArraySplit, Source, open_source
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import MakeDatasetSettings, load_settings, read_configs


class NoiseOptions(Options):
    level: int = Field(200, ge=0, le=255)


@pytest.fixture
def noise(monkeypatch):
    """Registers the source `noise`; what a test puts in the result replaces fields of the source it gives."""
    changes = {}
    monkeypatch.setattr(SOURCES, "_plugins", dict(SOURCES._plugins))

    @SOURCES.register("noise", options=NoiseOptions, facts=SourceFacts(root="", imbalanced=False))
    def open_noise(options, settings):
        """Grey squares."""
        split = ArraySplit(np.full((20, 9, 9, 1), options.level, np.uint8), np.arange(20) % 2, 9)
        fields = {"class_names": ["a", "b"], "channels": 1, "splits": {"train": split}} | changes
        return Source(name="noise", image_size=9, mirrorable=True, **fields)

    return changes


def test_a_source_of_a_plugin_is_built_with_its_options(noise, tmp_path, lines):
    settings = load_settings(MakeDatasetSettings, sets=["source.level=51", "mu=0.5"], flags={"source": "noise"})
    data = build_dataset(settings, tmp_path / "out", lines.append)
    assert (data.manifest.source, data.manifest.dist, data.mean) == ("noise", "exp", [0.2])
    assert (data.counts("train"), data.counts("test")) == ([8, 4], [2, 2])
    resolved = settings.resolve_plugins().model_dump()
    assert resolved["source"] == {"name": "noise", "level": 51} and resolved["dist"] == "exp"


def test_an_option_that_a_source_does_not_take_is_named(noise):
    settings = load_settings(MakeDatasetSettings, sets=["source.levle=51"], flags={"source": "noise"})
    with pytest.raises(PluginError, match=r"'noise' has no option 'levle'. Did you mean 'level'"):
        open_source(settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"splits": {}}, "its splits are"),
        ({"channels": 2}, "2 channels"),
        ({"class_names": ["a"]}, "labels outside 0 to 0"),
    ],
)
def test_a_source_that_breaks_its_promises_is_named(noise, change, words):
    noise |= change
    with pytest.raises(PluginError, match=f"source 'noise' of .* cannot be used: .*{words}"):
        open_source(MakeDatasetSettings(source="noise"))


@pytest.mark.parametrize("names", [["a", "a"], ["a", ""], ["a", "b\n"]])
def test_class_names_of_any_source_are_checked(noise, names):
    noise["class_names"] = names
    with pytest.raises(InputError, match="class"):
        open_source(MakeDatasetSettings(source="noise"))


def test_settings_of_an_older_program_are_read(tmp_path):
    (tmp_path / "old.toml").write_text('source = "folder"\nroot = "x"\ndist = "exp"\nmu = 0.5\nshard_mb = 64\n')
    settings = load_settings(MakeDatasetSettings, configs=read_configs([tmp_path / "old.toml"]))
    assert (settings.source.name, settings.dist, settings.shard_mb) == ("folder", "exp", 64)
