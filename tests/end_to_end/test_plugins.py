"""The example package, installed as anyone would install it, and a broken neighbour beside it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"

DEMANDING = """
from pydantic import Field
from registry import LOSSES
from registry.losses import CrossEntropy, Smoothed

class Demands(Smoothed):
    must: float = Field(2.0, description="as usual")
    names: list[str] = Field(default_factory=lambda: ["a"], description="made anew")
    maybe: int | None = Field(None, description="may be nothing")

@LOSSES.register("demanding", options=Demands)
class Demanding(CrossEntropy):
    \"\"\"Cross-entropy with options of all kinds.\"\"\"

    def loss(self, outputs, labels, progress=1.0):
        return 1 / (self.options.must - 1)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a program that finds the example, and a package whose loss cannot be imported."""
    pytest.importorskip("hatchling", reason="needs hatchling, of the extra 'dev', to build examples/plugin")
    site, broken = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("broken")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(EXAMPLE)], check=True)
    info = broken / "broken_neighbour-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-neighbour\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(
        "[ssfnas.losses]\nbroken = broken_neighbour\nabsent = json\ndemanding = demanding\n"
        "[ssfnas.ops]\nskip_connect = broken_neighbour\n"
    )
    (broken / "demanding.py").write_text(DEMANDING)
    (broken / "broken_neighbour.py").write_text("import a_module_that_is_not_there\n")
    return {"PYTHONPATH": f"{site}{os.pathsep}{broken}"}


def test_listed_with_options_and_origin_and_the_broken_with_the_reason(ssfnas, installed, tmp_path):
    listed = ssfnas.ok("plugins", cwd=tmp_path, environ=installed)
    assert listed.err == ""
    plugins = {(entry["kind"], entry["name"]): entry for entry in listed.json["plugins"]}
    for kind, name, option in (
        ("op", "blur_conv_3x3", "sigma"),
        ("relaxation", "gumbel_softmax", "tau_end"),
        ("loss", "effective_number", "beta"),
        ("strategy", "hill_climbing", "starts"),
    ):
        entry = plugins[kind, name]
        assert entry["origin"] == "ssfnas-example 0.1.0" and entry["summary"]
        assert entry["options"][option]["description"]
    options = plugins["loss", "demanding"]["options"]
    assert [options[name]["default"] for name in ("must", "names", "maybe")] == [2.0, ["a"], None]
    shown = ssfnas.ok(
        *("retrain", "resnet20", "--loss", "demanding", "--set", "loss.must=1", "--show-settings"),
        cwd=tmp_path,
        environ=installed,
    )
    argv = ["retrain", "resnet20", "--loss", "demanding", "--set", "loss.must=1"]
    failed = ssfnas.run(*argv, "--threads", "1", cwd=tmp_path, environ=installed)
    last = failed.err.strip().splitlines()[-1]
    assert failed.code == 1 and "ZeroDivisionError" in last and "a bug in 'demanding' of broken-neighbour 2.1" in last
    assert "must = 1.0" in shown.out.decode() and "maybe" not in shown.out.decode()
    assert "broken-neighbour 2.1 cannot be loaded: ModuleNotFoundError" in plugins["loss", "broken"]["error"]
    assert "registers none of that name" in plugins["loss", "absent"]["error"]
    assert "the built-in is used" in plugins["op", "skip_connect"]["warning"]
    assert all("error" not in entry for (_, name), entry in plugins.items() if name not in ("broken", "absent"))


def test_op_relaxation_and_loss_from_search_to_retraining(ssfnas, installed, world, tmp_path):
    """Beside the broken neighbour, which nobody asked for."""

    def ok(*argv):
        return ssfnas.ok(*argv, cwd=tmp_path, environ=installed)

    printed = ok(
        "search",
        "--data",
        world / "data",
        *ssfnas.tiny,
        "--relax",
        "gumbel_softmax",
        "--set",
        "relax.tau_end=0.2",
        "--loss",
        "effective_number",
        "--set",
        "loss.beta=0.99",
        "--set",
        "ops=none,blur_conv_3x3,skip_connect",
        "--set",
        "op_options.blur_conv_3x3.sigma=0.8",
        "--set",
        "relax.init_std=1",
        "-o",
        "run",
    ).json
    assert (printed["relax"], printed["loss"]) == ("gumbel_softmax", "effective_number")
    genotype = ok("derive", "run", "-o", "genotype.json") and (tmp_path / "genotype.json").read_text()
    assert '"blur_conv_3x3"' in genotype and '"sigma": 0.8' in genotype
    assert (tmp_path / "run" / "genotype.json").read_text() == genotype, "deriving draws no noise"
    printed = ok("retrain", "genotype.json", *ssfnas.tiny, "--loss", "effective_number", "-o", "retrained").json
    assert printed["loss"] == "effective_number"

    unknown = ["genotype.json", "unknown op 'blur_conv_3x3'", "ssfnas plugins", "ssfnas-example 0.1.0", "install that"]
    ssfnas.refuses(3, unknown, "describe", "genotype.json", cwd=tmp_path)
    ssfnas.refuses(3, unknown[1:], "evaluate", "retrained", cwd=tmp_path)
    recorded = json.loads((tmp_path / "retrained" / "config.json").read_text())["environment"]["plugins"]
    assert set(recorded) == {"op blur_conv_3x3", "loss effective_number"}

    site = tmp_path / "edited"
    shutil.copytree(installed["PYTHONPATH"].split(os.pathsep)[0], site)
    with (site / "ssfnas_example" / "op.py").open("a") as source:
        source.write("# another version of it\n")
    answer = ssfnas.ok("evaluate", "retrained", cwd=tmp_path, environ={"PYTHONPATH": str(site)})
    assert "was trained with another version of a plugin" in answer.err and answer.err.count("sha256") == 2
    assert "another version" not in ok("evaluate", "retrained").err


def test_a_strategy_climbs_from_the_best_of_its_starts(ssfnas, installed, world, tmp_path):
    judged = ["--strategy", "hill_climbing", "--set", "strategy.candidates=6", "--set", "strategy.starts=4"]
    argv = ["search", "--data", world / "data", *ssfnas.tiny, *ssfnas.ops, *judged, "-o", "run"]
    assert ssfnas.ok(*argv, cwd=tmp_path, environ=installed).json["strategy"] == "hill_climbing"
    (newest,) = sorted((tmp_path / "run" / "checkpoints").glob("*/tensors.safetensors"))[-1:]
    tensors = load_file(newest)
    genes, fitness = tensors["candidates.genes"], tensors["candidates.fitness"]
    assert genes.shape == (6, 2, 14)
    for number in (4, 5):
        parent = genes[fitness[:number].argmax()]
        assert 1 <= (genes[number] != parent).sum() <= 2


@pytest.mark.parametrize(
    "words, argv",
    [
        (["'broken'", "broken-neighbour 2.1", "ModuleNotFoundError"], ["--loss", "broken"]),
        (["'gumbel_softmax'", "tau_end", "greater than 0"], ["--relax", "gumbel_softmax", "--set", "relax.tau_end=0"]),
        (
            ["'blur_conv_3x3' has no option 'sigm'", "Did you mean 'sigma'?"],
            ["--set", "ops=none,blur_conv_3x3", "--set", "op_options.blur_conv_3x3.sigm=1"],
        ),
        (["op_options", "'sep_conv_9x9'", "ops"], ["--set", "op_options.sep_conv_9x9.sigma=1"]),
        (["unknown loss 'effectiv_number'", "Did you mean 'effective_number'?"], ["--loss", "effectiv_number"]),
    ],
)
def test_a_plugin_used_wrongly_is_one_line(ssfnas, installed, world, tmp_path, words, argv):
    ssfnas.refuses(2, words, "search", "--data", world / "data", *argv, cwd=tmp_path, environ=installed)
