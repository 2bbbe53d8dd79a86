"""Retrainings that begin with a supernet's weights: which are taken, of where, how many, and what is refused."""

import pytest
import torch
from search_support import TINY, dying_at

from registry.space import edge_list
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine.finished_search import FinishedSearch
from ssfnas_cli.engine.inherit import find_supernet, inherit
from ssfnas_cli.engine.retrain import build_retrain, plan_retrain, run_retrain
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.engine.train_phase import TrainPhase
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.nets.derived import DerivedEncoder
from ssfnas_cli.settings import RetrainSettings, SearchSettings, load_settings

OPS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_digits):
    """A finished search of 4 cells: normal, reduction, reduction, normal."""
    flags = {**TINY, "layers": 4, "batch_size": 64, "ops": OPS, "epochs": 1, "kernels": "torch"}
    path = tmp_path_factory.mktemp("base") / "run"
    run_search(load_settings(SearchSettings, flags={**flags, "data": str(tiny_digits.path)}), path, False)
    return path


@pytest.fixture
def genotype(base):
    return read_genotype(base / "genotype.json")


def settings_of(base, **flags):
    shape = {"channels": 2, "layers": 4, "batch_size": 64, "epochs": 1, "aux_weight": 0.0, "kernels": "torch"}
    return load_settings(RetrainSettings, flags={**shape, "init_from": str(base), **flags})


def fresh(genotype, channels=2, layers=4):
    torch.manual_seed(5)
    return DerivedEncoder(genotype, 1, channels, layers)


def test_each_op_gets_the_weights_of_its_edge_and_everything_else_keeps_its_own(base, genotype):
    encoder, untouched = fresh(genotype), fresh(genotype).state_dict()
    supernet = FinishedSearch.open(base).supernet
    taken = inherit(encoder, find_supernet(str(base)))
    expected = {
        name: supernet[f"encoder.{name}"] for name in untouched if name.startswith("stem.") and "run" not in name
    }
    for layer, cell in enumerate(encoder.cells):
        live = (genotype.reduce if layer in (1, 2) else genotype.normal).pruned().edges
        for number, edge in enumerate(live):
            row, column = edge_list().index((edge.source, edge.target)), OPS.index(edge.op)
            origin = f"encoder.cells.{layer}.of_edge.{row}.{column}."
            found = {name.removeprefix(origin): value for name, value in supernet.items() if name.startswith(origin)}
            expected |= {
                f"cells.{layer}.ops.{number}.{name}": v for name, v in found.items() if name.endswith("weight")
            }
        for name, _ in cell.inputs.named_parameters():
            if (origin := f"encoder.cells.{layer}.inputs.{name}") in supernet:
                expected[f"cells.{layer}.inputs.{name}"] = supernet[origin]
    expected = {name: value for name, value in expected.items() if "num_batches" not in name}
    assert taken.tensors == len(expected) and taken.weights == sum(value.numel() for value in expected.values())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, expected.get(name, untouched[name])), name
    parameters = dict(encoder.named_parameters())
    assert taken.of_tensors == len(parameters) and taken.of_weights == sum(p.numel() for p in parameters.values())
    assert 0 < taken.tensors < taken.of_tensors, "the supernet's BNs have no scales"


def test_a_deeper_network_takes_cells_by_their_place_behind_the_reductions(base, genotype):
    """Of 7 cells the reductions are 2 and 4, of the supernet's 4 they are 1 and 2."""
    encoder, untouched = fresh(genotype, layers=7), fresh(genotype, layers=7).state_dict()
    supernet = FinishedSearch.open(base).supernet
    inherit(encoder, find_supernet(str(base)))
    places = {0: 0, 1: None, 2: 1, 3: None, 4: 2, 5: 3, 6: None}
    for layer, origin in places.items():
        name = f"cells.{layer}.inputs.preprocess1.1.weight"
        theirs = None if origin is None else supernet[f"encoder.cells.{origin}.inputs.preprocess1.1.weight"]
        fits = theirs is not None and theirs.shape == untouched[name].shape
        assert fits == (origin is not None)
        assert torch.equal(encoder.state_dict()[name], theirs if fits else untouched[name])


def test_a_network_of_other_ops_takes_what_it_shares(base):
    encoder = fresh(named_genotype("random-1"))
    taken = inherit(encoder, find_supernet(str(base)))
    assert 0 < taken.tensors < taken.of_tensors


def test_a_network_of_another_width_is_refused_with_the_width_that_fits(base, genotype, tmp_path):
    with pytest.raises(UsageError, match=r"none of its weights has a place .*: give --channels 2 --stem cifar"):
        run_retrain(genotype, settings_of(base, channels=4), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()


def test_a_retraining_from_a_supernet_is_another_run_that_records_it_and_resumes_bit_equal(
    base, genotype, tmp_path, caplog
):
    with caplog.at_level("INFO", "ssfnas"):
        run_retrain(genotype, settings_of(base), tmp_path / "whole", False)
    with dying_at(TrainPhase, 0, 1):
        run_retrain(genotype, settings_of(base, save_minutes=1e-9), tmp_path / "run", False)
    run_retrain(genotype, settings_of(base), tmp_path / "run", False)
    ours, theirs = (load_newest(tmp_path / one / "checkpoints").tensors for one in ("run", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    config = RunFolder.open(tmp_path / "run").config
    taken = config["init"]["taken"]
    assert config["init"]["source"] == str(base.resolve()) and config["identity"]["init.kind"] == "supernet"
    said = f"{taken['tensors']} of the encoder's {taken['of_tensors']} tensors, with {taken['weights']:,} of its"
    assert said in caplog.text and said in (tmp_path / "whole" / "log.txt").read_text()
    plain, _ = plan_retrain(genotype, settings_of(""), None)
    begun, _ = plan_retrain(genotype, settings_of(base), None)
    assert plain.path != begun.path and "init.sha256" not in plain.identity
    assert {key: begun.identity[key] for key in plain.identity} == plain.identity


def test_a_pretraining_begins_with_the_same_weights(base, genotype):
    plan, card = plan_retrain(genotype, settings_of(base, pretrain="barlow", pretrain_epochs=1), None)
    _, (pretrain, train), model = build_retrain(plan, card)
    assert pretrain.model.encoder is train.model.encoder is model.encoder
    stem = FinishedSearch.open(base).supernet["encoder.stem.0.weight"]
    assert torch.equal(model.encoder.stem[0].weight, stem)


def test_what_has_no_weights_for_a_network_is_refused(base, genotype, tmp_path, tiny_digits):
    plain = load_settings(
        RetrainSettings, flags={"network": "resnet20", "data": str(tiny_digits.path), "init_from": "x"}
    )
    with pytest.raises(UsageError, match="a search has no weights for 'resnet20'"):
        plan_retrain(None, plain, None)
    with pytest.raises(InputError, match="no such run folder"):
        plan_retrain(genotype, settings_of(tmp_path / "nothing"), None)
    run_retrain(genotype, settings_of(""), tmp_path / "net", False)
    with pytest.raises(InputError, match="is a retrain run, not a search run"):
        plan_retrain(genotype, settings_of(tmp_path / "net"), None)
