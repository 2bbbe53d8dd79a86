"""`ssfnas sweep` through the installed program: a small table from nothing, stopped, gone on with, and compared."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults_support import wait_for

TINY = Path(__file__).parents[2] / "experiments" / "table1" / "tiny.toml"
SMALL = {"epochs": 1, "channels": 2, "layers": 3, "batch_size": 16, "threads": 1, "kernels": "torch"}
SETS = [f"{table}.{key}={value}" for table in ("search", "retrain") for key, value in SMALL.items()]
SETS += ["data.max_per_class=24", "search.epochs=2", "search.save_minutes=0.0001", "seeds=[3]"]
SETS += ["search.ops=none,max_pool_3x3,skip_connect,dil_conv_3x3", "evaluate.threads=1"]
ONLY = ["ssf-nas-mu0.1-logit-adjusted-*", "random-mu0.1-ce-*"]
SWEEP = ["sweep", str(TINY), *(word for one in SETS for word in ("--set", one)), "-o", "out"]
TABLE = [*SWEEP, *(word for one in ONLY for word in ("--only", one))]
RUNS = ["random-mu0.1-ce-seed3", "ssf-nas-mu0.1-logit-adjusted-seed3"]


@pytest.fixture(scope="module")
def table(ssfnas, tmp_path_factory):
    """A folder with `out`: stopped by SIGTERM while its search ran, and gone on with to the end. And what was said."""
    place = tmp_path_factory.mktemp("sweep")
    argv = [ssfnas.script, *TABLE, "--run", "--jobs", "2"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(argv, cwd=place, env=ssfnas.environ, **streams)
    search = place / "out" / "search-ssf-nas-mu0.1-seed3"
    wait_for(lambda: process.poll() is not None or list(search.glob("checkpoints/*/*")))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    stopped = {
        "code": process.returncode,
        "out": json.loads(out),
        "err": err,
        "config": (search / "config.json").stat(),
    }
    rest = ssfnas.through_the_door.ok(*TABLE, "--run", "--jobs", "2", cwd=place)
    return place, stopped, rest


def test_a_stopped_sweep_saves_and_the_same_command_goes_on(table):
    place, stopped, rest = table
    assert stopped["code"] == 75, stopped["err"]
    assert "the same command goes on" in stopped["err"].splitlines()[-1]
    states = {cell["name"]: cell["state"] for cell in stopped["out"]["cells"]}
    assert set(states.values()) <= {"done", "stopped", "waiting"} and "waiting" in states.values()
    assert rest.json["counts"] == {"done": 6, "failed": 0, "not run": 0}
    search = place / "out" / "search-ssf-nas-mu0.1-seed3"
    assert (search / "config.json").stat().st_ino == stopped["config"].st_ino, "the run that was begun went on"
    assert "next: ssfnas compare out" in rest.err
    for name in RUNS:
        assert json.loads((place / "out" / name / "status.json").read_text())["state"] == "done"


def test_when_all_is_done_nothing_is_begun(table, ssfnas):
    place, _, _ = table
    logs = place / "out" / "logs"
    before = {path: path.stat().st_size for path in logs.iterdir()}
    again = ssfnas.ok(*TABLE, "--run", cwd=place)
    assert again.json["counts"]["done"] == 6 and "started" not in again.err
    assert {path: path.stat().st_size for path in logs.iterdir()} == before
    assert ssfnas.ok(*TABLE, cwd=place).out == b""
    listed = ssfnas.ok(*SWEEP, "--json", cwd=place).json["cells"]
    assert sum(cell["done"] for cell in listed) == 6 and len(listed) == 41
    scripts = ssfnas.ok(*TABLE, "--slurm", "jobs", cwd=place)
    assert "nothing is missing" in scripts.err and not (place / "jobs").exists()


def test_compare_reads_the_folder(table, ssfnas):
    place, _, _ = table
    compared = ssfnas.ok("compare", "out", cwd=place).json
    runs = [Path(run["path"]).name for group in compared["groups"] for run in group["runs"]]
    assert sorted(runs) == RUNS and not compared["left_out"]
    assert [group["label"] for group in compared["groups"]] == ["ce, random", "logit_adjusted"]
    named = ssfnas.ok("compare", "out", "--sweep", TINY, "--baseline", "random, ce", "--figure", "top1", cwd=place).json
    assert [group["label"] for group in named["groups"]] == ["ssf-nas, logit-adjusted", "random, ce"]
    assert list(named["differences"]["random, ce"]) == ["ssf-nas, logit-adjusted"]
    assert set(named["core_hours"]) == {"search", "retrain"}
    (missing,) = named["left_out"]
    assert missing["path"] == str(TINY) and "36 of its 36 runs are not there yet" in missing["why"]


def test_pictures_and_the_report_name_the_arms(table, ssfnas):
    place, _, _ = table
    arms = ("--sweep", TINY)
    drawn = ssfnas.ok("plot", "curves", "out", "--kind", "search", *arms, "-o", "-", cwd=place).out.decode()
    assert "Linear probe, balanced test split" in drawn and ">ssf-nas, mu0.1<" in drawn
    assert ">mu0.1<" in ssfnas.ok("plot", "distribution", "out", *arms, "-o", "-", cwd=place).out.decode()
    net = f"out/{RUNS[0]}"
    page = ssfnas.ok("report", net, *arms, "--mistakes", "0", "-o", "-", cwd=place).out.decode()
    assert "random, mu0.1, ce, seed 3" in page and "36 of its 36 runs are not there yet" in page


def test_a_cell_that_fails_is_listed_and_the_others_run(table, ssfnas):
    """One network has another setting under the same name now, which its run refuses; another lacks its evaluation."""
    place, _, _ = table
    random, found = (place / "out" / name for name in RUNS)
    contents = lambda: {path: path.read_bytes() for path in random.iterdir() if path.is_file()}
    before = contents()
    (found / "evaluation.json").unlink()
    result = ssfnas.through_the_door.run(*TABLE, "--set", "networks.random.epochs=2", "--run", cwd=place)
    assert result.code == 3, result.err
    cells = {cell["name"]: cell for cell in result.json["cells"] if cell["state"] != "done"}
    error = cells[random.name]["error"]
    assert "holds another run, which differs in epochs (1 there, 2 here)" in error
    assert cells == {
        random.name: {"name": random.name, "stage": "retrain", "state": "failed", "error": error},
        f"evaluate-{random.name}": {
            "name": f"evaluate-{random.name}",
            "stage": "evaluate",
            "state": "not run",
            "error": f"{random.name} has failed",
        },
    }
    said = "ssfnas: 1 failed, 1 that need it were not run, 4 of 6 cells are done; "
    assert result.err.splitlines()[-1] == f"{said}{random.name}: {error}"
    assert (found / "evaluation.json").exists()
    assert contents() == before


def test_the_printed_commands_are_a_script(ssfnas, tmp_path):
    """The commands of what is missing, run by a shell, leave nothing missing; nor do children of the program."""
    (tmp_path / "it's.toml").write_text('output = "my $OUT"\n[data]\nmax_per_class = 12\n[search.arms]\na = {}\n')
    argv = ["sweep", "it's.toml", "--only", "data-*"]
    printed = ssfnas.ok(*argv, cwd=tmp_path)
    assert printed.err == "1 cells, 0 done, 1 to do\n"
    ssfnas.shell(printed.out.decode(), cwd=tmp_path)
    assert ssfnas.ok(*argv, cwd=tmp_path).out == b""
    shutil.rmtree(tmp_path / "my $OUT")
    assert ssfnas.ok(*argv, "--run", cwd=tmp_path).json["counts"]["done"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("my")] == ["my $OUT"]


def test_a_dry_run_adds_up_what_is_missing_and_writes_nothing(ssfnas, tmp_path):
    """Two seeds of a network: one is measured, on data made for it, two are counted."""
    text = "seeds = [0, 1]\n[data]\nmax_per_class = 12\n[networks]\nresnet20 = {}\n"
    text += "[retrain]\nepochs = 1\nthreads = 1\nbatch_size = 8\n"
    (tmp_path / "sweep.toml").write_text(text)
    result = ssfnas.through_the_door.ok("sweep", "sweep.toml", "--dry-run", "--jobs", "2", cwd=tmp_path)
    facts = result.json
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"] and facts["failed"] == 0
    one, other = facts["cells"]
    assert (one["name"], other["name"]) == ("resnet20-seed0", "resnet20-seed1") and result.err.count("dry run of ") == 1
    assert one["total_seconds"] == other["total_seconds"] > 0 and one["disk_bytes"] == other["disk_bytes"] > 0
    assert facts["total_seconds"] == pytest.approx(2 * one["total_seconds"])
    assert facts["disk_bytes"] == 2 * one["disk_bytes"] + facts["data_bytes"] and facts["data_bytes"] > 0
    assert facts["elapsed_seconds"] == pytest.approx(one["total_seconds"], abs=0.1)
    assert facts["counted"] == {"retrain": 2} and facts["not_counted"] == {"data": 1, "evaluate": 2}
    assert facts["starts"] == 5 and facts["start_seconds"] > 0


@pytest.mark.parametrize(
    ("words", "text", "argv"),
    [
        (["--run and --dry-run: give one"], "[search]", ["--run", "--dry-run"]),
        (["--jobs: is for --run"], "[search]", ["--jobs", "2"]),
        (["--max-time: is for --run"], "[search]", ["--max-time", "3"]),
        (["--max-time: ", "should look like 3:50:00"], "[search]", ["--run", "--max-time", "soon"]),
        (["sweep.toml: [search]: setting 'epochs'", "(got 0)"], "[search]\nepochs = 0", ["--run"]),
        (["--set epochs: should look like key=value"], "[search]", ["--set", "epochs"]),
        (
            ["sweep.toml: [search]: setting 'loss.gama': 'focal' has no option 'gama'"],
            '[search.loss]\nname="focal"\ngama=1',
            [],
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(ssfnas, tmp_path, words, text, argv):
    (tmp_path / "sweep.toml").write_text(text)
    ssfnas.refuses(2, words, "sweep", "sweep.toml", *argv, cwd=tmp_path)


def test_a_file_that_cannot_be_read(ssfnas, tmp_path):
    (tmp_path / "broken.toml").write_text("[search")
    ssfnas.refuses(3, ["broken.toml: is not TOML"], "sweep", "broken.toml", cwd=tmp_path)
    ssfnas.refuses(3, ["nowhere.toml: no such file"], "sweep", "nowhere.toml", cwd=tmp_path)
    ssfnas.refuses(3, [f"{tmp_path}: is a folder: name a TOML file"], "sweep", tmp_path, cwd=tmp_path)


def test_a_plan_says_what_its_author_may_not_have_meant_and_refuses_what_is_not_there(ssfnas, tmp_path):
    (tmp_path / "sweep.toml").write_text("seeds = 3\n[search.arms]\na = {}\nb = {}")
    planned = ssfnas.ok("sweep", "sweep.toml", cwd=tmp_path)
    assert "warning: sweep.toml: seeds = 3 is the one seed 3" in planned.err
    assert "warning: search-a-seed3 and search-b-seed3 have the same settings: both are made" in planned.err
    (tmp_path / "sweep.toml").write_text('[data]\nsource = "folder"\nroot = "nope"\n[search]')
    for flag in ("--run", "--dry-run"):
        ssfnas.refuses(3, ["sweep.toml: [data] root: nope does not exist"], "sweep", "sweep.toml", flag, cwd=tmp_path)
    printed = ssfnas.ok("sweep", "sweep.toml", cwd=tmp_path)  # it may be for another machine
    assert "warning: sweep.toml: [data] root: nope does not exist" in printed.err and b"--root nope" in printed.out


def test_printing_needs_no_torch(ssfnas, tmp_path):
    (tmp_path / "sweep.toml").write_text(TINY.read_text())
    argv = [sys.executable, "-X", "importtime", str(Path(sys.executable).with_name("ssfnas")), "sweep", "sweep.toml"]
    traced = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=ssfnas.environ)
    assert traced.returncode == 0, traced.stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in traced.stderr.splitlines()}
    assert "ssfnas_cli" in modules and not modules & {"torch", "torchvision", "sklearn", "matplotlib"}
    assert len(traced.stdout.splitlines()) == 81
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]
