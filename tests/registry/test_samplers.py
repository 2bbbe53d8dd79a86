import numpy as np

from registry import SAMPLERS


def build(name, counts):
    plugin = SAMPLERS.get(name)
    return plugin.factory(plugin.parse_options(), counts)


def test_by_instance_every_image_comes_once_an_epoch_in_an_order_that_follows_from_seed_and_epoch():
    labels = np.repeat([0, 1, 2], [30, 15, 5])
    sampler = build("instance", [30, 15, 5])
    orders = {(seed, epoch): sampler.order(labels, seed, epoch, 0.5) for seed in range(3) for epoch in range(3)}
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(50)) and len(order) == sampler.length(0.5)
    assert len({tuple(order) for order in orders.values()}) == 9
    assert np.array_equal(orders[1, 2], build("instance", [30, 15, 5]).order(labels, 1, 2, 0.0))
