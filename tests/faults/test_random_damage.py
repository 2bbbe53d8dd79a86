"""Random damage to every artifact: an error of ours, never a traceback, never a wrong load."""

import contextlib
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import PluginError
from ssfnas_cli.artifacts.checkpoint import list_checkpoints, load_checkpoint
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import read_sealed_json, write_json, write_sealed_json
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.model import load_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.artifacts.tensors import load_tensors
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.network import load_classifier
from ssfnas_cli.errors import SsfnasError

KINDS = ["flip", "cut", "grow", "insert", "overwrite", "remove"]
damages = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=3,
)
many = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def damaged(data, steps):
    """`data` after some steps of damage at relative places."""
    data = bytearray(data)
    for kind, where, junk in steps:
        at = int(where * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << junk[0] % 8
        elif kind == "cut":
            del data[at:]
        elif kind == "grow":
            data += junk
        elif kind == "insert":
            data[at:at] = junk
        elif kind == "overwrite":
            data[at : at + len(junk)] = junk
        elif kind == "remove":
            del data[at : at + len(junk)]
    return bytes(data)


@contextlib.contextmanager
def damage(file, steps):
    """Damage a file and put it back afterwards; whether it is any different."""
    before = file.read_bytes()
    after = damaged(before, steps)
    file.write_bytes(after)
    try:
        yield after != before
    finally:
        file.write_bytes(before)


def loads(load):
    """What `load` gives, or None after an error of ours; anything else fails the test."""
    try:
        return load()
    except (SsfnasError, PluginError) as error:
        assert str(error) and "\n" not in str(error)
        return None


def same_tensors(one, other):
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def copies(world, memory_folder):
    """The world's finished runs, data and genotype, to be damaged."""
    folder = memory_folder / "copies"
    for name in ("search", "retrain", "data"):
        shutil.copytree(world / name, folder / name)
    shutil.copy(world / "genotype.json", folder / "genotype.json")
    return folder


@many
@given(steps=damages)
def test_alphas(copies, steps):
    file = copies / "search" / "alphas.safetensors"
    whole = load_tensors(file)
    with damage(file, steps):
        found = loads(lambda: load_tensors(file))
        loads(lambda: derive_run(RunFolder.open(copies / "search", "search")))
    if found is not None:  # a space of the header's padding, at most
        same_tensors(found, whole)


@many
@given(steps=damages)
def test_a_model(copies, steps):
    file = copies / "retrain" / "model.safetensors"
    whole, card = load_model(file)
    with damage(file, steps):
        found = loads(lambda: load_model(file))
    if found is not None:
        same_tensors(found[0], whole)
        assert found[1] == card
        load_classifier(*found, file)


@many
@given(steps=damages, name=st.sampled_from(["tensors.safetensors", "state.json", "manifest.json"]))
def test_a_checkpoint(copies, steps, name):
    folder = list_checkpoints(copies / "search" / "checkpoints")[-1]
    whole = load_checkpoint(folder)
    with damage(folder / name, steps) as differs:
        found = loads(lambda: load_checkpoint(folder))
    if found is not None:  # white space of the manifest, at most
        assert name == "manifest.json" or not differs
        assert found.state == whole.state
        same_tensors(found.tensors, whole.tensors)


@many
@given(steps=damages)
def test_a_config(copies, steps):
    run = copies / "search"
    whole = read_sealed_json(run / "config.json")
    with damage(run / "config.json", steps):
        found = loads(lambda: RunFolder.open(run))
        loads(lambda: derive_run(RunFolder.open(run, "search")))
    assert found is None or found.config == whole


@many
@given(steps=damages)
def test_a_status(copies, steps):
    run = RunFolder.open(copies / "search")
    whole = run.status()
    with damage(run.path / "status.json", steps):
        found = loads(run.status)
    assert found is None or found == whole


@many
@given(steps=damages)
def test_a_genotype_is_refused_or_another_one_that_is_whole(copies, steps):
    """A genotype is made to be edited by hand, so it has no checksum: what is legal is read as what it says."""
    file = copies / "genotype.json"
    with damage(file, steps):
        found = loads(lambda: read_genotype(file))
    if found is not None:
        (copies / "again.json").write_bytes(found.to_json())
        assert read_genotype(copies / "again.json") == found


@many
@given(steps=damages)
def test_a_manifest_is_refused_or_another_data_set(copies, steps):
    """Its sha256 is the data set's identity, which every run records: it cannot be taken for the one it was."""
    before = DataSet.open(copies / "data").sha256

    def load():
        data = DataSet.open(copies / "data")
        for name in data.splits:
            data.split(name).rows(range(len(data.split(name))))
        data.verify()
        return data

    with damage(copies / "data" / "manifest.json", steps) as differs:
        found = loads(load)
    assert found is None or not differs or found.sha256 != before


@many
@given(steps=damages, which=st.integers(0, 2))
def test_a_shard(copies, steps, which):
    file = sorted((copies / "data").glob("*.safetensors"))[which]

    def load():
        data = DataSet.open(copies / "data")
        for name in data.splits:
            data.split(name).rows(range(len(data.split(name))))
        data.verify()

    with damage(file, steps) as differs, contextlib.suppress(SsfnasError):
        load()
        assert not differs


@contextlib.contextmanager
def instead_of(file, value):
    """Another content for a while, with a seal that fits it."""
    before = file.read_bytes()
    write_sealed_json(file, value)
    try:
        yield
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["config.json", "status.json"])
@pytest.mark.parametrize("value", [{}, {"state": []}, {"state": "done", "last": 3}, {"state": "nonsense"}])
def test_an_object_with_wrong_values_is_an_error_of_ours(copies, name, value):
    run = copies / "search"
    with instead_of(run / name, value), pytest.raises(SsfnasError, match=name):
        RunFolder.open(run).status()


@pytest.mark.parametrize("name", ["config.json", "status.json"])
@pytest.mark.parametrize("value", [[], "text", 3, None])
def test_what_is_no_object_is_an_error_of_ours(copies, name, value):
    run = copies / "search"
    with instead_of(run / name, {}):
        write_json(run / name, value)
        with pytest.raises(SsfnasError, match=name):
            RunFolder.open(run).status()


def config_of(run):
    return read_sealed_json(run / "config.json")


@pytest.mark.parametrize("part", ["schema", "kind", "identity", "settings", "data", "environment"])
@pytest.mark.parametrize("value", ["missing", 3, {}])
def test_a_config_whose_parts_are_missing_or_of_a_wrong_type_is_an_error_of_ours(copies, part, value):
    run = copies / "search"
    config = config_of(run) | {part: value}
    if value == "missing":
        del config[part]
    harmless = value == {} and part in ("identity", "environment")  # nothing that derive needs
    with instead_of(run / "config.json", config):
        found = loads(lambda: derive_run(RunFolder.open(run, "search")))
    assert (found is not None) == harmless


@pytest.mark.parametrize(
    "change",
    [{"epochs": "many"}, {"epochs": None}, {"ops": ["no_such_op"]}, {"relax": {"name": "nonsense"}}, {"unknown": 1}],
)
def test_settings_that_no_longer_validate_are_an_error_of_ours(copies, change):
    run = copies / "search"
    config = config_of(run)
    config["settings"] |= change
    with instead_of(run / "config.json", config), pytest.raises(SsfnasError, match=r"config\.json: settings\."):
        derive_run(RunFolder.open(run, "search"))
