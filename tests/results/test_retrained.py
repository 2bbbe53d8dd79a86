"""Which retrainings are of one genotype, and what makes their accuracies incomparable."""

from results_support import CELL, make_run

from ssfnas_cli.artifacts.files import write_json
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.results.facts import read_facts
from ssfnas_cli.results.figures import search_figures
from ssfnas_cli.results.retrained import by_genotype, cells_key, differing_settings

DATA = "a" * 64


def cell(*edges):
    return {"edges": [{"op": op, "from": source, "to": target} for op, source, target in edges], "concat": [2, 3]}


ONE = cell(("skip_connect", 0, 2), ("sep_conv_3x3", 1, 3))
OTHER = cell(("skip_connect", 1, 2), ("sep_conv_3x3", 1, 3))


def genotype(normal, name=None, reduce=ONE):
    return {"normal": normal, "reduce": reduce, **({"name": name} if name else {})}


def test_seeds_of_a_genotype_are_one_and_other_data_and_plain_networks_are_left_out(tmp_path):
    runs = [
        make_run(tmp_path / "one-0", seed=0, genotype=genotype(ONE, "first")),
        make_run(tmp_path / "other", seed=0, genotype=genotype(OTHER)),
        make_run(tmp_path / "one-1", seed=1, genotype=genotype(ONE, "another name")),
        make_run(tmp_path / "elsewhere", genotype=genotype(ONE), sha256="b" * 64),
        make_run(tmp_path / "plain"),
    ]
    found, left_out = by_genotype([read_facts(run) for run in runs], DATA)
    named = {entry.name: [run.path.name for run in entry.runs] for entry in found}
    assert named == {"first": ["one-0", "one-1"], "other": ["other"]}
    assert [(one.path.name, one.why) for one in left_out] == [
        ("elsewhere", "was trained on another data set than the search"),
        ("plain", "is of a plain network, which has no genotype"),
    ]


def test_what_has_ops_of_a_package_that_is_not_here_is_left_out_and_its_figures_are_not_known(tmp_path):
    gone = genotype(cell(("gone_op", 0, 2), ("sep_conv_3x3", 1, 3)))
    found, left_out = by_genotype([read_facts(make_run(tmp_path / "gone", genotype=gone))], DATA)
    assert not found and "unknown op 'gone_op'" in left_out[0].why
    search = make_run(tmp_path / "search", "search")
    write_json(search.path / "genotype.json", {"schema": "ssfnas.genotype/1", **gone})
    assert {figure.read(read_facts(search)) for figure in search_figures() if "in" in figure.title.split()} == {None}


def test_the_order_of_edges_and_dead_ones_do_not_make_another_genotype():
    parse = lambda normal: Genotype.model_validate(genotype(normal))
    turned = {**ONE, "edges": ONE["edges"][::-1]}
    dead = {"edges": [*ONE["edges"], {"op": "skip_connect", "from": 4, "to": 5}], "concat": [2, 3]}
    assert cells_key(parse(ONE)) == cells_key(parse(turned)) == cells_key(parse(dead))
    keys = {cells_key(parse(ONE)), cells_key(parse(OTHER)), cells_key(parse({**ONE, "concat": [3]}))}
    assert len(keys) == 3 and cells_key(Genotype.model_validate(genotype(ONE, reduce=OTHER))) not in keys


def test_settings_that_differ_are_named_but_not_seeds_genotypes_and_searches(tmp_path):
    origin = {"run": None, "rule": "darts", "epoch": 3, "seed": 0}
    one = make_run(tmp_path / "one", seed=0, provenance=origin, genotype=genotype(ONE))
    other = make_run(tmp_path / "other", seed=1, provenance=origin, genotype=genotype(OTHER))
    third = make_run(
        tmp_path / "third", "retrain", "lr=0.1", provenance=origin, epochs=5, genotype={"normal": CELL, "reduce": CELL}
    )
    facts = [read_facts(run) for run in (one, other, third)]
    assert differing_settings(facts[:2]) == [] and set(differing_settings(facts)) == {"epochs", "lr"}
