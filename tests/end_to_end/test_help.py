"""Help answers at once, without torch, for every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["make-dataset", "search", "derive", "retrain", "evaluate", "adjust", "predict", "export"]
COMMANDS += [
    "plot-genotype",
    "describe",
    "latency",
    "import-genotype",
    "runs",
    "sweep",
    "compare",
    "plot",
    "rank",
    "report",
]
COMMANDS += ["plugins"]
PRESETS = ("quick", "standard", "paper")
HEAVY = {"torch", "torchvision", "numpy", "sklearn", "matplotlib", "PIL", "safetensors"}


# The help of every command, and the packages that are imported after it
HELPS = """
import contextlib, io, json, sys
from ssfnas_cli.main import app
told = {}
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        app([command, "--help"], prog_name="ssfnas", standalone_mode=False)
    told[command] = [out.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helps(ssfnas, tmp_path_factory):
    """What HELPS tells: one fresh process for all commands, which are imported together anyway."""
    argv, cwd = [sys.executable, "-c", HELPS, *COMMANDS], tmp_path_factory.mktemp("helps")
    told = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, env=ssfnas.environ, check=True)
    return json.loads(told.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_imports_nothing_heavy(command, helps, ssfnas, tmp_path):
    text, modules = helps[command]
    assert "typer" in modules and not HEAVY & set(modules)
    assert f"Usage: ssfnas {command}" in text
    plain = ssfnas.ok(command, "--help", cwd=tmp_path)
    assert plain.err == "" and plain.out.decode() == text


def test_help_imports_nothing_heavy_and_not_much(ssfnas, tmp_path):
    argv = [str(Path(sys.executable).with_name("ssfnas")), "--help"]
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], cwd=tmp_path, capture_output=True, text=True, env=ssfnas.environ
    )
    assert traced.returncode == 0, traced.stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in traced.stderr.splitlines()}
    assert "typer" in modules, "the trace has no imports: the test would prove nothing"
    assert not modules & HEAVY
    assert "Usage: ssfnas" in traced.stdout

    plain = ssfnas.ok(*argv[1:], cwd=tmp_path)
    assert plain.err == "" and plain.out.decode() == traced.stdout
    assert len(traced.stderr.splitlines()) < 1000, (
        "every module costs time, on every machine; 631 when this was written"
    )


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_help_names_the_presets_and_what_they_and_zero_mean(command, ssfnas, tmp_path):
    text = ssfnas.ok(command, "--help", cwd=tmp_path, environ={"COLUMNS": "200"}).out.decode()
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│ --")}
    for flag, *values in {
        "search": [("--epochs", 3, 8, 40), ("--channels", 8, 8, 16), ("--layers", 4, 4, 8)],
        "retrain": [("--epochs", 8, 40, 150), ("--pretrain-epochs", 6, 20, 150), ("--channels", 12, 16, 36)],
    }[command]:
        named = ", ".join(f"{value} in {preset}" for value, preset in zip(values, PRESETS, strict=True))
        assert f"[default: ({named})]" in lines[flag]
    assert "[default: (32 in quick" in lines["--batch-size"]
    assert all(preset in text for preset in PRESETS) and "standard on other data" in text
    assert ("strong" in text) == (command == "retrain"), "a recipe"
    assert "0: torch's own choice" in lines["--threads"] and "0: the main process loads" in lines["--workers"]


def test_every_command_is_listed_and_tested(ssfnas, tmp_path):
    text = ssfnas.ok("--help", cwd=tmp_path, environ={"COLUMNS": "200"}).out.decode()
    listed = [line.split()[1] for line in text.partition("Commands")[2].splitlines() if line.startswith("│ ")]
    assert [name for name in listed if name[0].isalpha()] == COMMANDS


def test_help_in_an_ascii_locale(ssfnas, tmp_path):
    ascii_locale = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    assert b"Usage: ssfnas" in ssfnas.installed.ok("search", "--help", cwd=tmp_path, environ=ascii_locale).out


def test_version(ssfnas, tmp_path):
    from ssfnas_cli import __version__

    assert ssfnas.ok("--version", cwd=tmp_path).out.decode() == f"ssfnas {__version__}{os.linesep}"


def test_help_explains_the_words_of_the_field(ssfnas, tmp_path):
    text = ssfnas.ok("--help", cwd=tmp_path).out.decode()
    for word in ("supernet", "alpha", "relaxation", "genotype", "derive", "imbalance factor"):
        assert any(line.strip().startswith(f"{word}") and ":" in line for line in text.splitlines()), word
    assert "self-supervised" in ssfnas.ok("search", "--help", cwd=tmp_path).out.decode()
