"""What a finished search's supernet says of genotypes."""

import pytest
from search_support import TINY

from ssfnas_cli.artifacts.genotype import Genotype, read_genotype
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine.rank_run import supernet_accuracies
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import SearchSettings, load_settings


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_digits):
    flags = {**TINY, "batch_size": 64, "data": str(tiny_digits.path), "epochs": 2, "kernels": "torch"}
    path = tmp_path_factory.mktemp("rank") / "run"
    run_search(load_settings(SearchSettings, flags=flags), path, False)
    return RunFolder.open(path)


def test_the_genotype_of_the_search_gets_the_pruned_accuracy_that_the_search_measured(found):
    own = read_genotype(found.path / "genotype.json")
    other = own.model_copy(update={"normal": own.reduce, "reduce": own.normal})
    both = supernet_accuracies(found, {"own": own, "other": other})
    assert both["own"]["accuracy"] == found.metrics()[-1]["pruned_accuracy_alpha_half"]
    assert both["own"].keys() == {"accuracy", "balanced_accuracy"}
    assert supernet_accuracies(found, {"other": other})["other"] == both["other"], "one does not change the next"


def test_a_genotype_outside_the_space_is_named_with_what_it_lacks(found):
    with pytest.raises(InputError, match=r"random-1: has the op '.*_conv_.*', which .*run did not search"):
        supernet_accuracies(found, {"random-1": named_genotype("random-1")})
    large = {"edges": [{"op": "skip_connect", "from": 0, "to": 6}], "concat": [6]}
    with pytest.raises(InputError, match="big: its normal cell has more than the 4 nodes"):
        supernet_accuracies(found, {"big": Genotype.model_validate({"normal": large, "reduce": large})})
