"""The settings of a federated search: which of them go together, and what they are to a run's identity."""

import pytest
from settings_support import load

from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import RetrainSettings

ROUNDS = ("sync=round", "clients=4")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["sync=round"], "setting 'sync': needs clients: set their number, such as clients=4"),
        (["clients=4"], "setting 'sync': clients=4 is of a federated search: set sync=round, too"),
        (["local_steps=2"], "setting 'local_steps': is of a federated search: set sync=round and clients"),
        (["partition=by_class"], "setting 'partition': is of a federated search"),
        (["clients_per_round=2"], "setting 'clients_per_round': is of a federated search"),
        ([*ROUNDS, "local_steps=0"], "setting 'local_steps': Input should be greater than or equal to 1 (got 0)"),
        ([*ROUNDS, "clients=0"], "setting 'clients': Input should be"),
        ([*ROUNDS, "clients_per_round=5"], "setting 'clients_per_round': there are 4 clients: draw no more of them"),
        ([*ROUNDS, "partition=random"], "setting 'partition': Input should be 'equal', 'by_class' or 'dirichlet'"),
        ([*ROUNDS, "partition_alpha=0.3"], "is of the Dirichlet distribution, and partition is 'equal'"),
        (
            [*ROUNDS, "partition=dirichlet", "partition_alpha=0"],
            "setting 'partition_alpha': Input should be greater than 0",
        ),
        (["sync=epoch"], "setting 'sync': Input should be 'step' or 'round' (got 'epoch')"),
        (["alpha_optimizer=sgd", "alpha_betas=[0.5, 0.9]"], "setting 'alpha_betas': are Adam's"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(sets, words):
    with pytest.raises(UsageError) as caught:
        load(*sets)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_retraining_has_no_rounds():
    with pytest.raises(UsageError, match="unknown setting 'sync'"):
        load("sync=round", model=RetrainSettings)
    assert not load(model=RetrainSettings).is_federated


def test_a_search_is_not_federated_unless_it_is_said():
    plain = load().resolve_plugins()
    assert not plain.is_federated and plain.changed_identity() == {}


def test_the_identity_of_a_federated_search_has_its_clients_and_no_statistics_of_ranks():
    federated = load(*ROUNDS, "partition=dirichlet", "partition_alpha=0.3", "local_steps=5").resolve_plugins()
    expected = {"sync": "round", "clients": 4, "partition": "dirichlet", "partition_alpha": 0.3, "local_steps": 5}
    assert federated.changed_identity() == expected
    same = load(*ROUNDS, "batch_stats=local").resolve_plugins()
    assert same.identity() == load(*ROUNDS).resolve_plugins().identity()
