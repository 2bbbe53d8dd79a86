"""Stages joined by pipes, and the one command that needs no flag."""

import json
import signal
import subprocess

import pytest


def test_the_whole_pipe(ssfnas, world, tmp_path):
    tiny, ops = " ".join(ssfnas.tiny), " ".join(ssfnas.ops)
    result = ssfnas.shell(
        f"ssfnas search --data {world / 'data'} {tiny} {ops} --relax sigmoid --loss barlow -o s"
        f" | ssfnas derive - | tee genotype.json | ssfnas retrain - {tiny} -o r | ssfnas evaluate - --threads 1",
        tmp_path,
    )
    assert result.code == 0, result.err
    assert result.json["kind"] == "metrics" and result.json["run"] == "r"
    assert json.loads((tmp_path / "genotype.json").read_text())["provenance"]["rule"] == "fairdarts"


def test_a_stage_that_fails_stops_the_pipe_behind_it(ssfnas, tmp_path):
    result = ssfnas.shell("ssfnas derive nowhere | ssfnas retrain - | ssfnas evaluate -", tmp_path)
    assert result.code == 3
    lines = sorted(result.err.splitlines())
    assert len(lines) == 3, result.err
    assert "nowhere: no such run folder" in lines[0]
    assert all("standard input: nothing came" in line for line in lines[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough(ssfnas, world, tmp_path):
    for command in ("--help", f"derive {world / 'search'}", f"plot-genotype {world / 'genotype.json'} -o -"):
        result = ssfnas.shell(f"ssfnas {command} | head -c 0", tmp_path)
        assert (result.code, result.err) == (0, ""), command


def test_search_without_any_other_flag(ssfnas, compiled_kernels, tmp_path):
    """It makes the embedded data set and starts; its run derives without flags, even when stopped at once."""
    compiled_kernels(tmp_path / "cache")
    environ = ssfnas.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = tmp_path / "empty"
    folder.mkdir()
    process = subprocess.Popen(
        [ssfnas.script, "search", "--relax", "sigmoid", "--loss", "barlow"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("split of 'train'"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, said
    assert said[0].startswith("making the embedded data set (scikit-learn's digits, exp, mu 0.1)")
    assert "the same command goes on from there" in said[-1]
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("search-digits-exp-mu0.1-seed0-sigmoid-barlow-s0-")
    genotype = ssfnas.ok("derive", f"runs/{run.name}", cwd=folder, environ={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert genotype.json["provenance"]["rule"] == "fairdarts"
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["epochs"], settings["layers"]) == (3, 4), "the preset is quick"


NOISY = """
import atexit, ctypes, logging, os, subprocess, sys
from torch import nn
from registry import OPS

print("noise of print")
sys.__stdout__.write("noise of the first stdout\\n")
os.write(1, b"noise of descriptor 1\\n")
subprocess.run(["echo", "noise of a child"])
library = ctypes.CDLL(None)
library.printf(b"noise of C\\n")
library.fflush(None)
logging.basicConfig(stream=sys.stdout)
logging.getLogger("noisy").warning("noise of a logger")
atexit.register(print, "noise at exit")


@OPS.register("noisy_skip")
def noisy_skip(channels, stride, affine, options):
    \"\"\"A convolution whose author debugs with print.\"\"\"
    print("noise of building")
    return nn.Conv2d(channels, channels, 3, stride, 1)
"""


@pytest.fixture
def noisy(tmp_path) -> dict[str, str]:
    """The environment of a program that finds a plugin which writes to stdout in every way."""
    info = tmp_path / "plugins" / "noisy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ssfnas.ops]\nnoisy_skip = noisy_ops\n")
    (info.parent / "noisy_ops.py").write_text(NOISY)
    return {"PYTHONPATH": str(info.parent)}


def test_what_a_plugin_prints_goes_to_stderr_and_the_pipe_holds(ssfnas, world, noisy, tmp_path):
    argv = ["search", "--data", world / "data", *ssfnas.tiny, "--set", "ops=none,noisy_skip", "-o", "run"]
    searched = ssfnas.installed.ok(*argv, cwd=tmp_path, environ=noisy)
    assert searched.json["kind"] == "search-run", "stdout is JSON and nothing else"
    for noise in ("print", "the first stdout", "descriptor 1", "a child", "C", "a logger", "building"):
        assert f"noise of {noise}\n" in searched.err, noise
    assert "noise at exit" in searched.err
    derived = ssfnas.ok("derive", "-", stdin=searched.out, cwd=tmp_path, environ=noisy)
    described = ssfnas.ok("describe", "-", stdin=derived.out, cwd=tmp_path, environ=noisy)
    assert described.json["num_params"] > 0 and "noise of building" in described.err
    assert ssfnas.ok("plugins", cwd=tmp_path, environ=noisy).json["kind"] == "plugins"
    assert b"Usage: ssfnas" in ssfnas.ok("describe", "--help", cwd=tmp_path, environ=noisy).out


def test_streams_that_the_caller_has_closed(ssfnas, world, tmp_path):
    """No file that is opened later may get the number of stdout or stderr, and so what strangers print."""
    genotype = world / "genotype.json"
    closed = ssfnas.installed.shell(f"ssfnas runs {world} >&-", tmp_path)
    assert closed.code == 5 and closed.err == "ssfnas: standard output: Bad file descriptor\n"
    for command, code in {
        f"ssfnas plot-genotype {genotype} -o cells.svg >&- 2>&- <&-": 0,
        "ssfnas derive nowhere >&- 2>&-": 3,
        "ssfnas derive nowhere 2>&-": 3,
        "ssfnas --help >&- 2>&-": 5,
    }.items():
        result = ssfnas.installed.shell(command, tmp_path)
        assert (result.code, result.out, result.err) == (code, b"", ""), command
    assert (tmp_path / "cells.svg").read_bytes().endswith(b"</svg>\n")
