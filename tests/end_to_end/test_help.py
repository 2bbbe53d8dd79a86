"""Help answers at once, without torch, for every command."""

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


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy_and_not_much(command, ssfnas, tmp_path):
    argv = [str(Path(sys.executable).with_name("ssfnas")), *([command] if command else []), "--help"]
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
    assert b"Usage: ssfnas" in ssfnas.ok("search", "--help", cwd=tmp_path, environ=ascii_locale).out


def test_version(ssfnas, tmp_path):
    from ssfnas_cli import __version__

    assert ssfnas.ok("--version", cwd=tmp_path).out.decode() == f"ssfnas {__version__}{os.linesep}"


def test_help_explains_the_words_of_the_field(ssfnas, tmp_path):
    text = ssfnas.ok("--help", cwd=tmp_path).out.decode()
    for word in ("supernet", "alpha", "relaxation", "genotype", "derive", "imbalance factor"):
        assert any(line.strip().startswith(f"{word}") and ":" in line for line in text.splitlines()), word
    assert "self-supervised" in ssfnas.ok("search", "--help", cwd=tmp_path).out.decode()
