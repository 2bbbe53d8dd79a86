"""The images of the clients of a federated search: each image has one client, who has what the partition says."""

import numpy as np
import pytest

from ssfnas_cli.data.batches import stratified_halves
from ssfnas_cli.data.partition import partition
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import SearchSettings, load_settings

COUNTS = [400, 300, 200, 100, 60, 40]  # of the classes
LABELS = np.repeat(np.arange(len(COUNTS)), COUNTS)
HALVES = stratified_halves(LABELS, list("abcdef"), 0)


def divide(*sets, clients=4, seed=0, labels=LABELS, halves=HALVES):
    sets = ["sync=round", f"clients={clients}", *sets]
    settings = load_settings(SearchSettings, sets=sets, flags={"seed": seed})
    return partition(settings, labels, halves, len(COUNTS))


def counts(clients, half):
    """Images of every class of every client [K, C]."""
    return np.array([np.bincount(LABELS[parts[half]], minlength=len(COUNTS)) for parts in clients])


@pytest.mark.parametrize("how", ["equal", "by_class", "dirichlet"])
def test_every_image_belongs_to_one_client_and_stays_in_its_half(how):
    clients = divide(f"partition={how}")
    assert len(clients) == 4
    for number, half in enumerate(HALVES):
        rows = np.concatenate([parts[number] for parts in clients])
        assert np.array_equal(np.sort(rows), half), "all of them, and none twice"


@pytest.mark.parametrize("how", ["equal", "by_class", "dirichlet"])
def test_the_seed_decides_who_has_what(how):
    one, same, other = (divide(f"partition={how}", seed=seed) for seed in (0, 0, 1))
    equal = lambda a, b: all(np.array_equal(x, y) for x, y in zip(sum(a, ()), sum(b, ()), strict=True))
    assert equal(one, same) and not equal(one, other)


def test_equal_parts_differ_by_one_image_at_most_and_have_the_classes_as_they_are():
    clients = divide(clients=3)
    for half, rows in enumerate(HALVES):
        sizes = [len(parts[half]) for parts in clients]
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(rows)
    shares = counts(clients, 0) / counts(clients, 0).sum(1, keepdims=True)
    assert np.abs(shares - np.array(COUNTS) / sum(COUNTS)).max() < 0.06, "more than two standard deviations"


def test_by_class_a_class_has_one_client_and_clients_have_as_many_classes():
    clients = divide("partition=by_class")
    owned = counts(clients, 0) > 0
    assert np.array_equal(owned, counts(clients, 1) > 0), "the same client in both halves"
    assert (owned.sum(0) == 1).all() and sorted(owned.sum(1)) == [1, 1, 2, 2]


def test_dirichlet_divides_every_class_by_the_shares_that_are_drawn_for_it():
    """The shares are drawn again here, as numpy's own gamma variates, and compared within the rounding to images."""
    clients = divide("partition=dirichlet", "partition_alpha=0.7")
    generator = np.random.Generator(np.random.Philox(key=[0, 6], counter=[0, 0, 0, 2]))
    gammas = generator.standard_gamma(0.7, (len(COUNTS), 4))
    shares = gammas / gammas.sum(1, keepdims=True)
    for half in (0, 1):
        got = counts(clients, half)
        assert np.abs(got - (shares * got.sum(0)[:, None]).T).max() <= 1


def test_a_small_alpha_makes_clients_differ_and_a_large_one_makes_them_alike():
    def spread(alpha):
        """Standard deviation of a client's share of a class, the mean over seeds: sqrt((K - 1) / (K^2 (K a + 1)))."""
        drawn = [counts(divide("partition=dirichlet", f"partition_alpha={alpha}", seed=s), 0) for s in range(40)]
        return np.sqrt(np.mean([np.square(of_client / of_client.sum(0) - 0.25) for of_client in drawn]))

    for alpha in (2.0, 50.0):
        assert spread(alpha) == pytest.approx(np.sqrt(3 / (16 * (4 * alpha + 1))), rel=0.1)


def refused(*sets, **given):
    with pytest.raises(UsageError) as caught:
        divide(*sets, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_clients_than_images_are_refused():
    told = refused(clients=276)
    assert told.startswith("setting 'clients': 276 clients need 2 images each in either half")
    assert "have 550 and 550: take fewer clients" in told
    assert len(divide(clients=275)) == 275


def test_more_clients_than_classes_are_refused_by_class():
    assert "gives every client classes of its own, and there are 6 for 7 clients" in refused(
        "partition=by_class", clients=7
    )


def test_a_client_with_too_few_images_is_named():
    told = refused("partition=dirichlet", "partition_alpha=0.01", clients=20)
    assert told.startswith("setting 'partition': with dirichlet client ")
    assert told.endswith("a batch needs 2 of each: take a larger partition_alpha, fewer clients or another seed")
