"""The width whose weights come nearest: against a published count and against every width in turn."""

import pytest
import torch

from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.engine.match_size import match_channels
from ssfnas_cli.engine.network import describe_network, make_card
from ssfnas_cli.engine.retrain import plan_retrain
from ssfnas_cli.errors import UsageError
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.settings import RetrainSettings, load_settings


def planned(data, tmp_path, name="random-1", **settings):
    sets = [f"{key}={value}" for key, value in {"data": str(data.path), "layers": 3, **settings}.items()]
    return plan_retrain(named_genotype(name), load_settings(RetrainSettings, sets=sets), tmp_path / "run", True)


def weights(name, channels, data):
    with torch.device("meta"):
        return count_params(describe_network(named_genotype(name), channels, 3, data.num_classes, 8, 1, False))


@pytest.mark.parametrize(("name", "asked"), [("random-1", 9_000), ("random-2", 9_000), ("DARTS_V2", 25_000)])
def test_no_other_width_comes_nearer(tiny_digits, tmp_path, name, asked):
    _, card = planned(tiny_digits, tmp_path, name, match_params=asked)
    distances = {channels: abs(weights(name, channels, tiny_digits) - asked) for channels in range(2, 41, 2)}
    assert card.network.channels == min(distances, key=distances.get)


def test_it_finds_the_papers_width_by_the_published_size(tiny_digits):
    """DARTS's code counts 3,349,342 weights of DARTS_V2 at 36 channels and 20 cells, on images in colour."""
    settings = load_settings(RetrainSettings).resolve_plugins()
    card = make_card(named_genotype("DARTS_V2"), settings, tiny_digits)
    card = card.model_copy(update={"in_channels": 3, "image_size": 32})
    assert match_channels(card, 3_349_342).network.channels == 36


def test_the_width_is_no_setting_of_the_run_any_more(tiny_digits, tmp_path):
    """Runs of other widths are one arm, and an old run is what it was."""
    first, _ = planned(tiny_digits, tmp_path, match_params="9k", channels=4)
    second, _ = planned(tiny_digits, tmp_path, match_params=9000, channels=6)
    assert first.identity == second.identity
    assert first.identity["match_params"] == 9000.0 and "channels" not in first.identity
    plain, card = planned(tiny_digits, tmp_path, channels=4)
    assert (plain.identity["channels"], card.network.channels) == (4, 4) and plain.identity["match_params"] == "none"
    assert "match_params" not in plain.settings.changed_identity()


def test_a_size_that_no_width_has_is_refused(tiny_digits, tmp_path):
    with pytest.raises(UsageError, match=r"--set match_params=10: with 2 channels this network has [\d,]+ weights"):
        planned(tiny_digits, tmp_path, match_params=10)
