import json
from pathlib import Path

import pytest
import torch

from ssfnas_cli.artifacts.genotype import parse_genotype
from ssfnas_cli.artifacts.named import RANDOM_OPS, named_genotype, published_names
from ssfnas_cli.artifacts.published import parse_published
from ssfnas_cli.errors import UsageError
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.nets.heads import Classifier

PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "published_genotypes.json"


def test_there_are_thirteen_each_with_its_source():
    assert len(published_names()) == 13
    for name in published_names():
        genotype = named_genotype(name)
        assert genotype.name == name and genotype.provenance.repository.startswith("https://")
        assert genotype.drop_path == ("node" if name.startswith("FairDARTS") else "op")


@pytest.mark.parametrize(
    ("name", "params"), [("DARTS_V2", 3_349_342), ("FairDARTS_a", 2_360_782), ("NASNet", 3_830_950)]
)
def test_they_have_their_counts(name, params):
    with torch.device("meta"):
        assert count_params(Classifier.of_genotype(named_genotype(name), 3, 36, 20, 10, aux=False)) == params


def test_they_are_those_of_the_shared_folder():
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here")
    entries = json.loads(PUBLISHED.read_text())
    assert sorted(entry["name"] for entry in entries) == published_names()
    for entry in entries:
        fields = ", ".join(
            f"{key}={[tuple(item) if isinstance(item, list) else item for item in value]}"
            for key, value in entry["genotype"].items()
        )
        genotype, expected = named_genotype(entry["name"]), parse_published(f"Genotype({fields})", "", entry["name"])
        assert genotype.cells() == expected.cells() and genotype.drop_path == expected.drop_path


def test_a_random_genotype_follows_from_its_seed_and_has_two_inputs_a_node():
    genotypes = [named_genotype(f"random-{seed}") for seed in range(40)]
    assert named_genotype("random-7") == genotypes[7]
    assert len({genotype.to_json() for genotype in genotypes}) == 40
    ops = set()
    for genotype in genotypes:
        assert parse_genotype(genotype.to_json(), "a test") == genotype
        for cell in genotype.cells().values():
            for node in range(2, 6):
                sources = [edge.source for edge in cell.edges if edge.target == node]
                assert len(sources) == len(set(sources)) == 2
            ops |= {edge.op for edge in cell.edges}
    assert ops == set(RANDOM_OPS)


@pytest.mark.parametrize("name", ["random-", "random-x", "random--1", "random-1.5", "random-" + "9" * 30])
def test_a_random_genotype_without_a_seed_is_refused(name):
    with pytest.raises(UsageError, match="named by its seed"):
        named_genotype(name)


def test_other_names_are_none():
    assert named_genotype("DARTS_V9") is None and named_genotype("../genotypes/DARTS_V2") is None
