"""Tables of latencies: what is measured, what is known already, and what a network is predicted to take."""

import itertools
import json
import logging

import pytest
import torch
from torch import nn

from registry.norm import BatchNorm
from ssfnas_cli.artifacts import latency as files
from ssfnas_cli.artifacts.latency import Conditions, Entry, LatencyFile, read_table
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.engine import latency
from ssfnas_cli.engine.latency import LatencyTable, conditions_of, module_latency, network_latency, part_latency
from ssfnas_cli.errors import InputError
from ssfnas_cli.nets.parts import NetworkShape, Part, Space, network_parts

CPU, OPS = torch.device("cpu"), ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")
SPACE = Space(NetworkShape(4, 3, "cifar", 3, 8, 1), OPS, {})


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A cache folder of its own, and measurements that are a count: the parts that were measured."""
    parts = []
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(latency, "part_latency", lambda part, *how: (parts.append(part), float(len(parts)))[1])
    return parts


def test_each_part_is_measured_once_and_known_then(asked):
    table, number = LatencyTable.measured(SPACE.parts(), CPU)
    assert number == len(asked) == len(SPACE.parts()) and table.where.is_file()
    again, number = LatencyTable.measured(SPACE.parts(), CPU)
    assert (
        number == 0 and again.file == table.file and [again(part) for part in asked] == list(range(1, 1 + len(asked)))
    )
    more = SPACE._replace(ops=(*OPS, "dil_conv_3x3"))
    _, number = LatencyTable.measured(more.parts(), CPU)
    assert number == len(set(more.parts()) - set(SPACE.parts())) > 0
    assert LatencyTable.measured(more.parts(), CPU)[1] == 0
    anew, number = LatencyTable.measured(SPACE.parts(), CPU, anew=True)
    assert number == len(SPACE.parts()) and anew(SPACE.parts()[0]) > table(SPACE.parts()[0])
    assert more.parts()[-1] in anew, "what was not measured again is kept"


def test_another_batch_or_number_of_threads_is_another_table(asked, monkeypatch):
    first, _ = LatencyTable.measured(SPACE.parts(), CPU)
    second, number = LatencyTable.measured(SPACE.parts(), CPU, batch=2)
    assert number == len(SPACE.parts()) and first.where != second.where
    here = conditions_of(CPU, 1)
    monkeypatch.setattr(latency, "conditions_of", lambda *how: here.model_copy(update={"threads": 99}))
    assert LatencyTable.measured(SPACE.parts(), CPU)[1] == len(SPACE.parts())


def test_a_damaged_table_of_the_cache_is_made_anew(asked, caplog):
    table, _ = LatencyTable.measured(SPACE.parts(), CPU)
    table.where.write_text("{")
    with caplog.at_level(logging.WARNING, "ssfnas"):
        assert LatencyTable.measured(SPACE.parts(), CPU)[1] == len(SPACE.parts())
    assert "measuring anew" in caplog.text


def test_a_named_table_that_lacks_something_names_the_command(asked, tmp_path):
    LatencyTable.measured(SPACE.parts(), CPU)[0].where.rename(tmp_path / "mine.json")
    named = LatencyTable.read(tmp_path / "mine.json")
    named.refuse_missing(SPACE.parts(), SPACE.shape, OPS)
    wider = SPACE._replace(shape=SPACE.shape._replace(channels=6))
    with pytest.raises(InputError, match=r"mine.json: lacks .* other parts.*--channels 6 .* --ops none,skip_connect"):
        named.refuse_missing(wider.parts(), wider.shape, OPS)
    with pytest.raises(InputError, match=r"lacks op sep_conv_7x7 \(4 to 4 channels, side 8, stride 1\)"):
        named(Part("op", "sep_conv_7x7", "{}", 4, 4, 8, 1))


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda value: value.update(schema="ssfnas.latency/2"), "newer than this ssfnas reads"),
        (lambda value: value.pop("schema"), "is no table of latencies"),
        (lambda value: value["entries"][0].update(ms=-1), "entries.0.ms"),
        (lambda value: value["entries"][0].update(ms="fast"), "entries.0.ms"),
        (lambda value: value.pop("conditions"), "conditions"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, edit, message):
    entry = Entry(kind="op", name="skip_connect", in_channels=4, out_channels=4, side=8, stride=2, ms=1.5)
    conditions = Conditions(device="phone", processor="mine", torch="none", threads=1, batch=1)
    value = json.loads(LatencyFile(conditions=conditions, entries=[entry]).to_json())
    (tmp_path / "table.json").write_text(json.dumps(value))
    assert read_table(tmp_path / "table.json").entries == [entry]
    edit(value)
    (tmp_path / "table.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "table.json")


def test_a_prediction_is_the_sum_of_the_parts(asked):
    genotype, shape = named_genotype("DARTS_V2"), SPACE.shape._replace(layers=5)
    parts = network_parts(genotype, shape)
    table, _ = LatencyTable.measured(parts, CPU)
    by_hand = {part: number for number, part in enumerate(dict.fromkeys(parts), 1)}
    assert sum(map(table, parts)) == sum(by_hand[part] for part in parts)
    costs = Space(shape, ("none", "skip_connect"), {}).costs(lambda part: 0.5)
    assert costs.fixed == 0.5 * (2 + 3 * 5) and (costs.ops["normal"][:, 1] == 0.5 * 3).all()


def test_what_is_measured_has_its_norms_folded_and_computes_in_evaluation(monkeypatch):
    ran = []

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), BatchNorm(4)

        def forward(self, x):
            out = self.norm(self.conv(x))
            ran.append((self.training, self.norm.folded, torch.is_inference_mode_enabled()))
            return out

    times = itertools.count(0.0, 2.0)  # the clock is looked at twice in each measurement, so each takes 2 seconds
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(times))
    assert module_latency(Seen(), (2, 4, 8, 8), CPU, repeats=5) == 2000
    assert ran[-5:] == [(False, True, True)] * 5


def test_real_parts_and_networks_can_be_measured():
    before = torch.random.get_rng_state()
    for part in Space(NetworkShape(2, 3, "imagenet", 3, 33, 1), OPS, {}).parts()[::4]:
        assert part_latency(part, CPU, repeats=1) > 0
    size = SPACE.shape._asdict()
    assert network_latency(named_genotype("DARTS_V2"), size, CPU, batch=2, repeats=1) > 0
    assert (
        network_latency("resnet20", {k: size[k] for k in ("num_classes", "image_size", "in_channels")}, CPU, 1, 1) > 0
    )
    assert torch.equal(before, torch.random.get_rng_state()), "nothing random moved"
