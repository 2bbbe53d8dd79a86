"""What counts as done: a whole output of the same command and the same inputs."""

import json
import shlex
from pathlib import Path

import pytest
from results_support import make_run, split_of

from ssfnas_cli.artifacts.files import sha256_file, write_sealed_json
from ssfnas_cli.artifacts.named import random_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.sweep.cells import Cell
from ssfnas_cli.sweep.state import is_done, missing

ARGV = ("retrain", "net.json", "--data", "data", "--epochs", "3", "--seed", "0", "-o", "run")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data set of which only the manifest matters, and a genotype."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/manifest.json").write_text("{}")
    Path("net.json").write_bytes(random_genotype(0).to_json())
    return tmp_path


def trained(name="run", argv=ARGV, sha256=None, genotype=None, **more):
    """A run folder of that command."""
    sha256 = sha256 or sha256_file(Path("data/manifest.json"))
    command = shlex.join(["ssfnas", *argv])
    identity = {"data_sha256": sha256, "genotype": (genotype or random_genotype(0)).shape(), **more.pop("inputs", {})}
    return make_run(Path(name), sha256=sha256, command=command, identity=identity, **more)


def cell(stage="retrain", name="run", argv=ARGV, source="net.json", **more):
    return Cell(stage, name, argv, Path(name), data=Path("data"), source=Path(source) if source else None, **more)


def test_a_run_of_the_same_command_and_inputs_is_done(place):
    assert not is_done(cell())
    trained()
    assert is_done(cell())


def test_flags_that_change_no_result_make_no_difference(place):
    trained(argv=(*ARGV, "--threads", "2", "--quiet"))
    assert is_done(cell(argv=(*ARGV, "--device", "cpu")))


def test_places_and_the_order_of_flags_make_no_difference(place):
    """The run was made from another folder, and by somebody who typed the flags in another order."""
    moved = "retrain /old/net.json --seed 0 --other-data --epochs 3 -o /old/run --data /old/data"
    trained(argv=tuple(moved.split()))
    assert is_done(cell())
    sets = lambda *values: (*ARGV, *(word for value in values for word in ("--set", value)))
    trained("other", argv=sets("a=1", "a=2"))
    assert is_done(cell(name="other", argv=sets("a=1", "a=2"))), "the last one counts"
    assert not is_done(cell(name="other", argv=sets("a=2", "a=1")))


def test_a_plain_network_is_told_by_its_name(place):
    argv = ("retrain", "resnet20", "--data", "data", "-o", "run")
    trained(argv=argv)
    assert is_done(cell(argv=argv, source=None))
    assert not is_done(cell(argv=("retrain", "resnet32", *argv[2:]), source=None))


def test_an_unfinished_run_is_not_done(place):
    trained()
    write_sealed_json(Path("run/status.json"), {"state": "stopped", "epoch": 1, "epochs": 3})
    assert not is_done(cell())


@pytest.mark.parametrize(
    "made",
    [
        {"argv": (*ARGV[:5], "4", *ARGV[6:])},
        {"sha256": "b" * 64},
        {"genotype": random_genotype(1)},
    ],
)
def test_a_run_of_another_command_or_other_inputs_is_not_done(place, made):
    trained(**made)
    assert not is_done(cell())


def test_a_run_that_has_lost_its_network_is_not_done_if_it_can_be_written_again(place):
    trained()
    run = RunFolder.open(Path("run"))
    Path("run/model.safetensors").write_bytes(b"weights")
    status = run.status()
    run.write_done(status.pop("result"), **{key: value for key, value in status.items() if key in ("epoch", "epochs")})
    assert is_done(cell())
    Path("run/model.safetensors").unlink()
    assert is_done(cell()), "nothing is left to write it from, and it may be kept without its weights"
    Path("run/checkpoints/0000000001").mkdir(parents=True)
    assert not is_done(cell())


def test_a_damaged_run_is_not_done(place):
    trained()
    Path("run/config.json").write_text("{")
    assert not is_done(cell())


def test_a_correction_is_of_the_network_that_is_there(place):
    trained("base")
    Path("base/model.safetensors").write_bytes(b"weights")
    argv = ("adjust", "base", "-o", "run")
    source = sha256_file(Path("base/model.safetensors"))
    trained(argv=argv, inputs={"adjustment.source": source})
    assert is_done(cell("adjust", argv=argv, source="base"))
    Path("base/model.safetensors").write_bytes(b"other weights")
    assert not is_done(cell("adjust", argv=argv, source="base"))


def test_an_evaluation_has_the_splits_that_are_asked_for(place):
    trained(top1=None)
    evaluation = lambda *splits: cell("evaluate", "evaluate-run", ("evaluate", "run"), "run", splits=splits)
    assert not is_done(evaluation())
    facts = {"class_names": [], "train_counts": [], "splits": {"test": split_of(50.0)}}
    write_sealed_json(Path("run/evaluation.json"), facts)
    assert is_done(evaluation()) and is_done(evaluation("test")) and not is_done(evaluation("test", "val"))


@pytest.mark.parametrize(
    ("flags", "done"),
    [
        ((), True),
        (("--rule", "darts"), True),
        (("--rule", "argmax"), False),
        (("--epoch", "3"), True),
        (("--epoch", "1"), False),
        (("--threshold", "0.5"), False),
    ],
)
def test_a_genotype_is_of_the_rule_and_the_epoch_that_are_asked_for(place, flags, done):
    search = make_run(Path("search"), "search", epochs=3)
    origin = {"run": str(search.path.resolve()), "epoch": 3, "rule": "darts", "threshold": None}
    genotype = random_genotype(0)
    derived = genotype.model_copy(update={"provenance": genotype.provenance.model_copy(update=origin)})
    Path("g.json").write_bytes(derived.to_json())
    argv = ("derive", "search", *flags, "-o", "g.json")
    assert is_done(cell("derive", "g.json", argv, "search")) is done


@pytest.mark.parametrize(
    ("limits", "candidate", "flags", "done"),
    [
        (None, None, ("--max-macs", "250M"), False),
        ({"max_macs": 2.5e8, "channels": 36, "layers": 20}, None, ("--max-macs", "0.25G"), True),
        ({"max_macs": 2.5e8, "channels": 36, "layers": 20}, 7, ("--max-macs", "250M", "--cost-layers", "20"), True),
        ({"max_macs": 2.5e8, "channels": 36, "layers": 20}, None, ("--max-macs", "250M", "--cost-layers", "8"), False),
        ({"max_macs": 2.5e8, "channels": 36, "layers": 20}, None, (), False),
        (None, 7, ("--candidate", "7"), True),
        (None, 7, ("--candidate", "8"), False),
        (None, 7, (), False),
    ],
)
def test_a_genotype_fits_what_is_asked_for(place, limits, candidate, flags, done):
    search = make_run(Path("search"), "search", epochs=3)
    origin = {"run": str(search.path.resolve()), "epoch": 3, "rule": "darts", "limits": limits, "candidate": candidate}
    genotype = random_genotype(0)
    derived = genotype.model_copy(update={"provenance": genotype.provenance.model_copy(update=origin)})
    Path("g.json").write_bytes(derived.to_json())
    assert is_done(cell("derive", "g.json", ("derive", "search", *flags, "-o", "g.json"), "search")) is done


def test_the_last_epoch_of_a_search_that_judges_candidates_is_its_last_round(place):
    """Its epochs are followed by rounds."""
    search = make_run(Path("search"), "search", epochs=3)
    rounds = [*search.metrics(), {"phase": "search", "epoch": 4}]
    (search.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    genotype = random_genotype(0)
    for epoch in (3, 4):
        origin = {"run": str(search.path.resolve()), "epoch": epoch, "rule": "darts", "threshold": None}
        derived = genotype.model_copy(update={"provenance": genotype.provenance.model_copy(update=origin)})
        Path("g.json").write_bytes(derived.to_json())
        assert is_done(cell("derive", "g.json", ("derive", "search", "-o", "g.json"), "search")) is (epoch == 4)


def test_what_needs_a_missing_cell_is_missing(place):
    trained()
    cells = [
        Cell("data", "new", (), Path("new")),
        Cell("data", "data", (), Path("data")),
        cell(needs=("data",)),
        cell("evaluate", "evaluate-run", ("evaluate", "run"), "run", needs=("run",)),
    ]
    assert [one.name for one in missing(cells)] == ["new"]
    Path("run/evaluation.json").unlink()
    assert [one.name for one in missing(cells)] == ["new", "evaluate-run"]
    Path("data/manifest.json").unlink()
    assert [one.name for one in missing(cells)] == ["new", "data", "run", "evaluate-run"]
