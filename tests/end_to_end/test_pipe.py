"""Stages joined by pipes, and the one command that needs no flag."""

import json
import signal
import subprocess
import sys
from pathlib import Path


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


def test_search_without_any_other_flag(ssfnas, tmp_path):
    """It makes the embedded data set and starts; its run derives without flags, even when stopped at once."""
    script = str(Path(sys.executable).with_name("ssfnas"))
    environ = ssfnas.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = tmp_path / "empty"
    folder.mkdir()
    process = subprocess.Popen(
        [script, "search", "--relax", "sigmoid", "--loss", "barlow"],
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
    assert (settings["epochs"], settings["layers"]) == (12, 4), "the preset is quick"
