"""Settings through the program: what is shown can be fed back, and one rule says which layer wins."""

import json
import tomllib

import pytest


@pytest.mark.parametrize(
    "argv",
    [
        ["make-dataset", "--dist", "step", "--mu", "0.2", "--set", "on_bad=skip"],
        ["search", "--relax", "sigmoid", "--set", "relax.zero_one=l2", "--loss", "barlow", "--max-time", "3:50:00"],
        ["retrain", "GENOTYPE", "--preset", "quick", "--pretrain", "barlow", "--set", "pretrain.lambda=0.01"],
    ],
)
def test_shown_settings_fed_back_are_the_same(ssfnas, world, tmp_path, argv):
    argv = [str(world / "genotype.json") if word == "GENOTYPE" else word for word in argv]
    positional = [word for word in argv[:2] if not word.startswith("--")]
    shown = ssfnas.ok(*argv, "--show-settings", cwd=tmp_path)
    assert shown.err == ""
    (tmp_path / "all.toml").write_bytes(shown.out)
    again = ssfnas.ok(*positional, "--config", "all.toml", "--show-settings", cwd=tmp_path)
    assert again.out == shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["all.toml"], "to show is not to run"


def test_the_order_of_layers(ssfnas, tmp_path):
    (tmp_path / "some.toml").write_text(
        'epochs = 7\nseed = 7\nlayers = 7\n[loss]\nname = "ce"\nlabel_smoothing = 0.3\n[relax]\nname = "sigmoid"\n'
    )
    argv = ["search", "--preset", "quick", "--config", "some.toml", "--set", "epochs=8", "--set", "layers=8"]
    argv += ["--layers", "9", "--loss", "barlow", "--set", "loss.lambda=0.5"]
    settings = tomllib.loads(ssfnas.ok(*argv, "--show-settings", cwd=tmp_path).out.decode())
    assert (settings["layers"], settings["epochs"], settings["seed"]) == (9, 8, 7), "flag, --set, --config"
    assert settings["channels"] == 8, "then the preset"
    assert settings["momentum"] == 0.9, "then the default"
    assert settings["relax"]["name"] == "sigmoid"
    assert settings["loss"]["lambda"] == 0.5, "an option of the plugin that a flag beside it names"
    assert "label_smoothing" not in settings["loss"], "those of the plugin it replaces are forgotten"


@pytest.mark.parametrize(("presets", "epochs"), [(["paper", "strong"], 150), (["strong"], 40)])
def test_a_recipe_lies_over_the_preset_that_is_named_or_that_would_be_taken(ssfnas, tmp_path, presets, epochs):
    flags = [word for name in presets for word in ("--preset", name)]
    shown = ssfnas.ok("retrain", "resnet20", "--data", "some", *flags, "--show-settings", cwd=tmp_path)
    settings = tomllib.loads(shown.out.decode())
    assert (settings["epochs"], settings["nesterov"], settings["decay_bn"]) == (epochs, True, False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_config_file_as_windows_writes_it_is_read(ssfnas, tmp_path, encoding):
    """With a byte-order mark, in UTF-16 (what > writes in PowerShell), with CR LF."""
    printed = ssfnas.ok("search", "--set", "data=Größe", "--show-settings", cwd=tmp_path).out
    text = printed.decode().replace("\n", "\r\n")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "c.toml").write_bytes((mark + text).encode(encoding))
    assert ssfnas.ok("search", "--config", "c.toml", "--show-settings", cwd=tmp_path).out == printed


def test_shown_settings_tell_what_flip_auto_means_on_this_data_and_config_json_records_it(ssfnas, world):
    shown = ssfnas.ok("search", "--data", "data", "--show-settings", cwd=world).out.decode()
    line = next(line for line in shown.splitlines() if line.startswith("flip = "))
    assert line.startswith('flip = "auto"  # false here: ') and "--set flip=true" in line
    resolved = json.loads((world / "search/config.json").read_text())["resolved"]["flip"]
    assert resolved["value"] is False and "mirrored" in resolved["why"]


def test_a_lowered_threshold_is_a_warning_at_the_end_of_the_search_and_not_again_when_it_is_derived(
    ssfnas, world, tmp_path
):
    flags = [*ssfnas.tiny, *ssfnas.ops, "--relax", "sigmoid", "--epochs", "1", "-o", str(tmp_path / "run")]
    search = ssfnas.ok("search", "--data", "data", *flags, cwd=world)
    assert search.err.count("threshold lowered") == 1
    again = ssfnas.ok("derive", str(tmp_path / "run"), cwd=world)
    assert "threshold lowered" not in again.err
    other = ssfnas.ok("derive", str(tmp_path / "run"), "--epoch", "0", cwd=world)
    assert other.err.count("threshold lowered") == 1
