"""Parts of the lifeline that no test of whole ranks reaches on every machine."""

import json
import threading

import pytest
import torch.distributed as dist
from faults_support import wait_for

from ssfnas_cli import lifeline
from ssfnas_cli.lifeline import Lifeline


def test_ranks_that_stay_too_long_in_a_stage_get_its_error():
    store = dist.HashStore()
    with Lifeline(store, 0, 1).ending_after(0.01, "too long"):
        wait_for(lambda: store.check(["error"]))
    assert json.loads(store.get("error")) == {"rank": None, "message": "too long", "code": 5}


def test_a_stage_that_ends_in_time_has_no_error():
    store = dist.HashStore()
    with Lifeline(store, 0, 1).ending_after(3600, "too long"):
        pass
    assert not store.check(["error"])
    wait_for(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


@pytest.mark.parametrize(("own", "text", "code"), [(None, "cannot be reached", 5), (("mine is worse", 3), "mine", 3)])
def test_a_store_that_does_not_answer_ends_the_rank_with_its_own_error_if_it_has_one(
    monkeypatch, capsys, own, text, code
):
    class Ended(Exception):
        pass

    def leave(code):
        raise Ended(code)

    monkeypatch.setattr(lifeline, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(lifeline, "SILENCE_SECONDS", 0.01)
    monkeypatch.setattr(lifeline.os, "_exit", leave)
    tie = Lifeline(dist.HashStore(), 1, 2)  # nobody listens to the store, as if each call waited for ever
    tie._error = own
    with pytest.raises(Ended) as ended:
        tie._watch_the_store()
    assert ended.value.args == (code,)
    assert text in capsys.readouterr().err


def test_a_rank_that_is_gone_within_its_first_second_is_missed(monkeypatch):
    monkeypatch.setattr(lifeline, "SILENCE_SECONDS", 0.01)
    store = dist.HashStore()
    first, other = Lifeline(store, 0, 2), Lifeline(store, 1, 2)
    for tie in (other, first):
        tie.end()  # its threads stop before their first look at the store
    store.set("came/0", "1")
    other.wait_for_all(10)
    heard = [(0, 0.0)] * 2
    wait_for(lambda: first._listen(heard) or store.check(["error"]))
    assert "rank 1 has ended without a word" in json.loads(store.get("error"))["message"]


def test_a_store_that_answers_ends_nobody(monkeypatch):
    monkeypatch.setattr(lifeline, "SILENCE_SECONDS", 3.5)
    tie, pauses = Lifeline(dist.HashStore(), 0, 1), []

    class Ended:
        def wait(self, seconds):
            """An answer comes in every third pause."""
            pauses.append(seconds)
            tie._answers += len(pauses) % 3 == 0
            return len(pauses) > 30

    tie._ended = Ended()
    tie._watch_the_store()
    assert len(pauses) == 31
