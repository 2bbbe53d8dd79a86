"""Amounts in words, and what the settings of a cost are to a run's identity."""

import pytest
from settings_support import load

from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import parse_amount, show_amount
from ssfnas_cli.settings.cost import parse_cost


@pytest.mark.parametrize("text", ["300M", "3e8", "0.3G", "300_000_000", "300,000,000", "300000k", " 300 m ", "3.e8"])
def test_many_ways_to_write_a_number(text):
    assert parse_amount(text) == 300_000_000
    assert load(f"cost_target={text}", cost="macs").cost_target == load(cost="macs", cost_target=3e8).cost_target


def test_milliseconds_are_the_unit_of_latencies():
    assert parse_cost("4.5ms") == 4.5 == parse_cost("4.5") and parse_amount("1.5K") == 1500


def test_milliseconds_of_what_is_no_latency_are_refused():
    with pytest.raises(ValueError, match="is a time"):
        parse_amount("5ms")
    with pytest.raises(UsageError, match=r"cost_target.*is a time"):
        load("cost_target=5ms", cost="macs")


@pytest.mark.parametrize("text", ["300X", "M", "-3M", "nan", "inf", "3 00", "", "1e400M", "0x10"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(UsageError, match="cost_target"):
        load(f'cost_target="{text}"', cost="macs")


def test_amounts_are_shown_in_words():
    assert [show_amount(value, "macs") for value in (0, 7, 999, 1000, 54_321, 298.7e6, 1e9, 3e12)] == [
        f"{number} multiply-adds" for number in ("0", "7", "999", "1k", "54.32k", "298.7M", "1G", "3000G")
    ]
    assert show_amount(999_960, "params") == "1000k weights" and show_amount(4.2149, "latency") == "4.21 ms"


def test_a_cost_is_identity_and_where_its_table_lies_is_not():
    identity = lambda *sets, **flags: load(*sets, **flags).resolve_plugins().identity()
    changed = lambda *sets, **flags: load(*sets, **flags).resolve_plugins().changed_identity()
    assert not {"cost_target", "cost_at", "cost_weight", "cost_channels", "cost_layers"} & identity().keys()
    assert changed() == {} and changed(cost="macs")["cost"] == "macs"
    for change in ("cost_target=3M", "cost_weight=2", "cost_at=expected", "cost_channels=16", "cost_layers=8"):
        assert identity(change, cost="macs") != identity(cost="macs"), change
    assert identity("cost_table=a.json", cost="latency") == identity("cost_table=b.json", cost="latency")
    assert "cost_weight" not in identity(cost="macs", strategy="random")


def test_the_usual_factor_depends_on_whether_there_is_a_target():
    factor = lambda *sets: load(*sets, cost="macs").weight_of_cost
    assert (factor("cost_target=3M"), factor(), factor("cost_weight=0")) == (10.0, 0.1, 0.0)
