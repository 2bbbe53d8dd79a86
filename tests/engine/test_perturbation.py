"""Derivation by perturbation: what is decided, in which order, by which measurements; its run, its resume, its end."""

import itertools
import json
import signal
from functools import partial

import numpy as np
import pytest
import torch
from faults_support import assert_same_end
from search_support import TINY, run, state

from registry.space import CELL_TYPES, EDGE_WEIGHTS, edge_list
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.batches import normaliser
from ssfnas_cli.engine.derive_perturbation import derive_by_perturbation
from ssfnas_cli.engine.derive_run import derive_run, weights_of_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.perturbation import Measured, Part, Perturbation, most_missed, schedule, without
from ssfnas_cli.engine.perturbation_phase import DecidedSupernet, PerturbationPhase
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.engine.search_health import pruned_mixing
from ssfnas_cli.errors import InputError, OutputExistsError, UsageError
from ssfnas_cli.results.facts import read_facts
from ssfnas_cli.settings import PerturbationSettings, SearchSettings, load_settings

OPS = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")
RUN_OPS = ("none", "max_pool_3x3", "skip_connect")  # of whole runs, which are the quicker for it
EDGES = edge_list()


def search_settings(data, *sets, **flags):
    given = {**TINY, "batch_size": 64, "ops": RUN_OPS, "epochs": 1, "kernels": "torch", "data": str(data.path), **flags}
    return load_settings(SearchSettings, sets=("statistics_batches=1", *sets), flags=given)


def perturb(source, output, *sets, force=False, **flags):
    settings = load_settings(PerturbationSettings, sets=sets, flags={"epochs_between": 1, "kernels": "torch", **flags})
    return derive_by_perturbation(RunFolder.open(source), settings, output, force)[1]


@pytest.fixture(scope="module")
def searched(tmp_path_factory, few_digits):
    path = tmp_path_factory.mktemp("search") / "run"
    run_search(search_settings(few_digits, batch_size=10), path, False)
    return path


@pytest.fixture(scope="module")
def derived(tmp_path_factory, searched):
    """An undisturbed derivation."""
    path = tmp_path_factory.mktemp("derivation") / "run"
    perturb(searched, path)
    return path


# Decisions


def test_every_edge_of_both_cells_is_decided_once_and_then_every_node_with_a_choice():
    rounds = schedule(OPS, seed=3)
    assert [[decision.kind for decision in one] for one in rounds] == 17 * [list(CELL_TYPES)]
    for place in range(2):
        of_edges, of_nodes = [one[place] for one in rounds[:14]], [one[place] for one in rounds[14:]]
        assert sorted({part.row for part in one.parts}.pop() for one in of_edges) == list(range(14))
        assert all(one.keep == 1 and [part.column for part in one.parts] == [1, 2, 3] for one in of_edges)
        targets = [{EDGES[part.row][1] for part in one.parts} for one in of_nodes]
        assert sorted(map(tuple, targets)) == [(3,), (4,), (5,)] and all(one.keep == 2 for one in of_nodes)
        assert sorted(len(one.parts) for one in of_nodes) == [3, 4, 5]
    assert schedule(OPS, seed=3) == rounds != schedule(OPS, seed=4)
    assert [one[0].parts for one in rounds] != [one[1].parts for one in rounds], "each cell has its own order"


def test_the_part_whose_absence_hurts_most_is_kept():
    measured = [Measured(50, 30, 1.0), Measured(40, 35, 1.1), Measured(45, 20, 3.0), Measured(40, 36, 1.2)]
    assert most_missed(measured, 1, "accuracy") == [3], "of equal accuracies that of the higher loss"
    assert most_missed(measured, 2, "accuracy") == [1, 3]
    assert most_missed(measured, 1, "balanced_accuracy") == [2] and most_missed(measured, 2, "loss") == [2, 3]
    assert most_missed([Measured(1, 1, 1)] * 3, 1, "loss") == [0]


def measure_all(choices, worth):
    """Measure everything as if `worth(kind, part)` were what the supernet loses without a part."""
    for _ in range(choices.num_measurements):
        kind, part = choices.next_part()
        lost = worth(kind, part)
        choices.measured.append(Measured(100 - lost, 100 - lost, lost))


def test_the_cells_are_those_of_the_parts_that_are_missed_most():
    numbers = np.random.default_rng(0)
    table = {kind: numbers.random((len(EDGES), len(OPS))) for kind in CELL_TYPES}
    of_edges = {kind: numbers.random(len(EDGES)) for kind in CELL_TYPES}
    choices = Perturbation(OPS, 0, "accuracy")
    measure_all(choices, lambda kind, part: table[kind][part] if part.column else of_edges[kind][part.row])
    for kind, cell in choices.cells().items():
        expected = set()
        for node in range(2, 6):
            rows = [row for row, (_, target) in enumerate(EDGES) if target == node]
            for row in sorted(rows, key=lambda row: -of_edges[kind][row])[:2]:
                expected.add((EDGES[row][0], node, OPS[1 + int(table[kind][row, 1:].argmax())]))
        assert {(edge.source, edge.target, edge.op) for edge in cell.edges} == expected and len(cell.edges) == 8
        assert cell.concat == (2, 3, 4, 5)


def test_what_is_decided_has_weight_one_and_the_rest_keeps_its_weights_and_gradients():
    choices = Perturbation(OPS, 0, "accuracy")
    alphas = {kind: torch.randn(14, 4, requires_grad=True) for kind in CELL_TYPES}
    mixing = {kind: values.softmax(dim=1) for kind, values in alphas.items()}
    assert all(torch.equal(values, mixing[kind]) for kind, values in choices.apply(mixing).items())
    first, second = choices.rounds[0]
    choices.measured = [Measured(9, 9, 9), Measured(5, 5, 5), Measured(9, 9, 9)]  # the middle one is missed
    applied = choices.apply(mixing)
    row = first.parts[0].row
    assert applied["normal"][row].tolist() == [0, 0, 1, 0] and torch.equal(applied["reduce"], mixing["reduce"])
    others = [number for number in range(14) if number != row]
    assert torch.equal(applied["normal"][others], mixing["normal"][others])
    (applied["normal"] * torch.arange(4)).sum().backward()
    assert not alphas["normal"].grad[row].any() and alphas["normal"].grad[others].abs().sum(dim=1).min() > 0
    assert choices.next_part() == ("reduce", second.parts[0])
    dropped = without(applied, "reduce", Part(3, 1))
    assert dropped["reduce"][3, 1] == 0 and (dropped["reduce"] != applied["reduce"]).sum() == 1
    assert not without(applied, "reduce", Part(3))["reduce"][3].any()


def test_an_edge_that_is_cut_loses_its_own_weight_and_others_keep_theirs():
    choices = Perturbation(OPS, 0, "accuracy")
    measure_all(choices, lambda kind, part: part.row + (part.column or 0))
    mixing = {kind: torch.full((14, 4), 0.25) for kind in CELL_TYPES}
    mixing |= {EDGE_WEIGHTS[kind]: torch.linspace(0.1, 0.9, 14) for kind in CELL_TYPES}
    applied = choices.apply(mixing)
    kept = (applied["normal"] != 0).any(dim=1)
    assert kept.tolist() == [row in (0, 1, 3, 4, 7, 8, 12, 13) for row in range(14)]
    assert torch.equal(applied["normal_edges"], torch.where(kept, mixing["normal_edges"], 0.0))
    dropped = without(mixing, "reduce", Part(5))
    assert dropped["reduce_edges"][5] == 0 and (dropped["reduce_edges"] != mixing["reduce_edges"]).sum() == 1
    assert torch.equal(without(mixing, "reduce", Part(5, 1))["reduce_edges"], mixing["reduce_edges"])


# The supernet


def begin(data, ops, *sets, halves=None, epochs_between=1, **flags):
    """A supernet as a search has it, in which nothing is decided, and what makes the phase of its derivation."""
    settings = search_settings(data, *sets, ops=ops, **flags).resolve_plugins()
    chosen = load_settings(PerturbationSettings, flags={"epochs_between": epochs_between, "criterion": "loss"})
    search = DecidedSupernet(settings, data, Device("cpu", 0), halves)
    search.choices = Perturbation(settings.ops, 0, "loss")
    return search, lambda: PerturbationPhase(chosen, search)


def decide(phase, rounds):
    for epoch in range(0, rounds * (1 + phase.settings.epochs_between), 1 + phase.settings.epochs_between):
        for step in range(phase.num_steps(epoch)):
            phase.step(epoch, step, None)


def zeros(x, stride):
    return torch.zeros_like(x[:, :, ::stride, ::stride])


def test_a_dead_op_is_dropped(tiny_digits):
    """The supernet has learned the very images that it is judged on, with one op whose results are zeros."""
    every = np.arange(len(tiny_digits.split("train")))
    flags = {"batch_size": 32, "lr": 0.2, "epochs": 8, "epochs_between": 0}
    search, phase = begin(tiny_digits, ("max_pool_3x3", "dil_conv_3x3"), halves=(every, every), **flags)
    for cell in search.model.encoder.cells:
        for node, ops in enumerate(cell.of_node):
            ops["0"].forward = partial(zeros, stride=2 if cell.reduction and node < 2 else 1)
    search.strategy.update = lambda step: {}
    for epoch in range(8):
        run(search, search.num_steps(epoch), epoch)
    phase = phase()
    before = phase.measure(phase.mixing())
    decide(phase, 14)
    first = phase.choices.measured[0]
    assert first == before, "what is measured without it is what is measured with it"
    kept = [part.column for _, _, (part,) in phase.choices.decided()]
    assert len(kept) == 28 and kept.count(1) >= 24  # by chance 14, and once in ten thousand times 24


def test_a_measurement_is_that_of_the_supernet_without_the_part_computed_directly(tiny_digits):
    search, phase = begin(tiny_digits, OPS)
    run(search, 1)
    phase = phase()
    decide(phase, 1)
    choices, images = phase.choices, normaliser(tiny_digits)
    decision = choices.rounds[1][0]
    for number in range(3):
        phase.step(2, number, None)
    mixing = {kind: values.clone() for kind, values in search.strategy.mixing(1.0).items()}
    for (kept,), one in zip((kept for _, _, kept in choices.decided()[:2]), choices.rounds[0], strict=True):
        mixing[one.kind][kept.row] = torch.eye(len(OPS))[kept.column]
    rows = search.halves[1]
    labels = torch.from_numpy(search.split.labels[rows])
    pixels = images(torch.from_numpy(search.split.rows(rows)).permute(0, 3, 1, 2).float() / 255)
    for part, measured in zip(decision.parts, choices.measured[6:9], strict=True):
        changed = {kind: values.clone() for kind, values in mixing.items()}
        changed["normal"][part.row, part.column] = 0
        with search.estimated_statistics(changed), torch.no_grad():
            search.model.eval()
            logits = search.model.head(search.model.encoder(pixels, changed)).double()
        assert measured.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
        assert measured.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())


def test_the_tuning_trains_what_is_left_and_alphas_only_until_every_op_is_decided(tiny_digits):
    search, phase = begin(tiny_digits, OPS, batch_size=16)
    run(search, 2)
    phase = phase()
    assert phase.epochs == 33 and phase.tuning_epochs == 16 and phase.num_steps(1) == search.num_steps(0)
    decide(phase, 1)
    alphas = {kind: values.clone() for kind, values in search.strategy.alphas.items()}
    weights, decided = state(search, "encoder."), phase.choices.decided()
    for step, batch in itertools.islice(enumerate(phase.batches(1, 0)), 3):
        values = phase.step(1, step, batch)
    assert values["lr"] < 0.1 * search.settings.lr and "alpha_loss" in values
    for decision, _, (kept,) in decided:
        for layer, cell in enumerate(search.model.encoder.cells):
            if cell.reduction != (decision.kind == "reduce"):
                continue
            for name, value in state(search, f"encoder.cells.{layer}.of_edge.{kept.row}.").items():
                used = name.split(".")[5] == str(kept.column)
                assert used or torch.equal(value, weights[name]), "an op that was dropped is not computed"
    row = decided[0][2][0].row
    moved = (search.strategy.alphas["normal"] != alphas["normal"]).any(dim=1)
    assert moved[[number for number in range(14) if number != row]].all()
    decide_rest(phase)
    assert phase.choices.every_op_is_decided
    (step, batch) = next(enumerate(phase.batches(29, 0)))
    assert "alpha_loss" not in phase.step(29, step, batch)


def decide_rest(phase):
    while not phase.choices.every_op_is_decided:
        number = len(phase.choices.measured)
        phase.choices.measured.append(Measured(number % 7, 0, number % 5))


# The run


def test_a_derivation_has_its_genotype_its_record_and_where_it_came_from(searched, derived):
    folder, genotype = RunFolder.open(derived, "search"), read_genotype(derived / "genotype.json")
    lines, record = folder.metrics(), json.loads((derived / "perturbation.json").read_text())
    assert len(lines) == 33 and [line.get("measurements") for line in lines[:3]] == [4, None, 4]
    assert lines[-1]["decisions"] == 34 == len(record["decisions"])
    assert record["decisions"][0]["decides"] == "op" and len(record["decisions"][0]["without"]) == 2
    provenance = genotype.provenance
    assert (provenance.run, provenance.rule, provenance.epoch) == (str(derived), "perturbation", 1)
    weights = weights_of_run(folder)
    assert weights["normal"].shape == (34, 14, len(RUN_OPS)) and 0 < weights["normal"][0].min() < 1
    expected = pruned_mixing(genotype, RUN_OPS, torch.device("cpu"))
    for kind in CELL_TYPES:
        assert np.array_equal(weights[kind][-1], expected[kind].numpy())
        assert [len(rows) for rows in _inputs(genotype.cells()[kind])] == [2, 2, 2, 2]
    assert folder.config["derivation"]["source"] == str(searched) and folder.status()["result"]["derived"]
    assert derive_run(folder) == genotype
    assert lines[-1]["pruned_accuracy_alpha_half"] == lines[-1]["accuracy_alpha_half"]


def _inputs(cell):
    return [[edge.source for edge in cell.edges if edge.target == node] for node in range(2, 6)]


def test_the_search_is_only_read_and_its_settings_are_those_of_the_derivation(searched, derived):
    ours, theirs = RunFolder.open(derived), RunFolder.open(searched)
    assert (searched / "genotype.json").exists() and theirs.status()["state"] == "done"
    beside = {key: value for key, value in ours.config["identity"].items() if key.startswith("derivation.")}
    assert beside.keys() == {"derivation.rule", "derivation.epochs_between", "derivation.source"}
    assert {key: value for key, value in ours.config["identity"].items() if key not in beside} == theirs.config[
        "identity"
    ]
    facts, plain = read_facts(ours), read_facts(theirs)
    assert facts.settings == plain.settings | {"derivation.rule": "perturbation", "derivation.epochs_between": 1}


def test_a_derivation_that_is_killed_and_stopped_goes_on_and_ends_bit_equal(zygote, searched, derived, tmp_path):
    argv = ["derive", searched, "--rule", "perturbation", "--epochs-between", "1", "-o", "run", "--threads", "1"]
    argv += ["--set", "kernels=torch"]
    every_step = ["--set", "save_minutes=0.0000001"]
    kill = lambda *at: {"signal_at_step": [signal.SIGKILL, "perturbation", *at]}
    stop = {"signal_at_step": [signal.SIGTERM, "perturbation", 1, 1, 200]}
    assert zygote.run([*argv, *every_step], tmp_path, kill(0, 3, 500)).code == -signal.SIGKILL
    stopped = zygote.run([*argv, *every_step], tmp_path, stop)
    assert stopped.code == 75 and "the same command goes on" in stopped.err and stopped.out == ""
    half = zygote.run(["derive", "run"], tmp_path)
    assert half.code == 3 and "run: is stopped, not done: run its command again to go on: ssfnas derive" in half.err
    (entry,) = zygote.run(["runs", "."], tmp_path).json["runs"]
    assert (entry["state"], entry["derived"], entry["phase"]) == ("stopped", "perturbation", "perturbation")
    assert entry["next"].startswith("ssfnas derive ") and entry["source"] == str(searched)
    assert zygote.run(argv, tmp_path, kill(30, 1, 100)).code == -signal.SIGKILL
    done = zygote.run(argv, tmp_path)
    assert done.code == 0 and "cost: " not in done.err, "that is said before it begins"
    assert_same_end(tmp_path / "run", derived)
    for name in ("perturbation.json", "alphas.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (derived / name).read_bytes()
    assert done.json == json.loads((tmp_path / "run" / "genotype.json").read_text())


def test_other_commands_read_the_result(zygote, searched, derived, tmp_path):
    genotype = read_genotype(derived / "genotype.json")
    assert zygote.run(["derive", derived], tmp_path).json == json.loads(genotype.to_json())
    described = zygote.run(["describe", derived, "--channels", "2", "--layers", "3"], tmp_path)
    assert described.code == 0 and described.json["num_params"] > 0
    (entry,) = zygote.run(["runs", derived], tmp_path).json["runs"]
    assert (entry["state"], entry["derived"]) == ("done", "perturbation")
    assert entry["next"] == f"ssfnas retrain {derived}/genotype.json"
    small = ["--epochs", "1", "--channels", "2", "--layers", "3", "--batch-size", "32", "--threads", "1"]
    words = ["retrain", derived / "genotype.json", *small, "--set", "kernels=torch", "-o", "net"]
    assert zygote.run(words, tmp_path).code == 0
    facts = read_facts(RunFolder.open(tmp_path / "net"))
    assert facts.settings["search.derivation.rule"] == "perturbation" and "search.rule" not in facts.settings
    both = [RunFolder.open(one).metrics()[-1]["elapsed_seconds"] for one in (searched, derived)]
    assert facts.cost["search_seconds"] == pytest.approx(sum(both)), "a derivation costs its search, too"
    shown = zygote.run(["compare", searched, derived], tmp_path)
    assert shown.code == 0 and any("rule=perturbation" in str(group["label"]) for group in shown.json["groups"])
    for words in (["plot", "alphas", derived, "-o", "alphas.svg"], ["report", searched, derived, "-o", "page.html"]):
        result = zygote.run(words, tmp_path)
        assert result.code == 0, result.err
    assert "derivation (perturbation)" in (tmp_path / "page.html").read_text()


def test_the_same_command_returns_the_result_and_another_setting_is_another_run(searched, derived):
    before = {path: path.stat().st_mtime_ns for path in derived.rglob("*")}
    assert perturb(searched, derived) == read_genotype(derived / "genotype.json")
    assert {path: path.stat().st_mtime_ns for path in derived.rglob("*")} == before
    with pytest.raises(OutputExistsError, match=r"differs in derivation.criterion \(unset there, loss here\)"):
        perturb(searched, derived, criterion="loss")
    with pytest.raises(OutputExistsError, match=r"differs in derivation.rule"):
        run_search(search_settings_of(searched), derived, False)


def search_settings_of(path):
    return RunFolder.open(path).settings(SearchSettings)


def test_its_cost_is_said_before_it_begins(searched, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(PerturbationPhase, "step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), caplog.at_level("INFO", "ssfnas"):
        perturb(searched, tmp_path / "run", epochs_between=3)
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("cost: ")]
    # 28 edges of 2 ops, and nodes with 3, 4 and 5 inputs in both cells; 16 times 3 epochs
    assert "cost: 80 measurements" in said and "48 epochs of tuning, of 2 steps" in said and "in all" in said


def test_what_cannot_be_derived_so_is_one_line(searched, derived, few_digits, tmp_path):
    with pytest.raises(InputError, match="is a derivation itself: name its search"):
        perturb(derived, tmp_path / "x")
    with pytest.raises(UsageError, match="is the search that is derived from"):
        perturb(searched, searched, force=True)
    for flag, given in {
        "--rule": {"rule": "darts"},
        "--epoch": {"epoch": 1},
        "--threshold": {"threshold": 0.5},
    }.items():
        with pytest.raises(UsageError, match=f"{flag}: .* is a derivation by perturbation"):
            derive_run(RunFolder.open(derived), **given)
    for name, flags, words in (
        ("random", {"strategy": "random"}, "the strategy 'random' has chosen a whole architecture"),
        ("gumbel", {"relax": "gumbel"}, "the supernet of --relax gumbel has one op an edge"),
        ("federated", {"sync": "round", "clients": 2}, "the clients of a federated search keep their own"),
    ):
        sets = ["strategy.candidates=1"] if name == "random" else []
        run_search(search_settings(few_digits, *sets, **flags), tmp_path / name, False)
        with pytest.raises(UsageError, match=words):
            perturb(tmp_path / name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_search_that_is_not_done_or_has_no_checkpoint_is_named(few_digits, tmp_path):
    settings = search_settings(few_digits, seed=7)
    run_search(settings, tmp_path / "search", False)
    folder = RunFolder.open(tmp_path / "search")
    for checkpoint in folder.checkpoints.iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(InputError, match="has no checkpoint, so its supernet is gone"):
        perturb(folder.path, tmp_path / "x")
    folder.write_status("stopped")
    with pytest.raises(InputError, match="is stopped, not done: run its command again"):
        perturb(folder.path, tmp_path / "x")
    assert not (tmp_path / "x").exists()
