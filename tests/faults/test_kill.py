"""kill -9 wherever it hurts; the same command then ends where an undisturbed run ends, bit for bit."""

import signal

import pytest
from faults_support import DATASET, RETRAIN, SEARCH, SHORT, WITH_CONVOLUTIONS, assert_same_end, script

KILL = signal.SIGKILL
STEPS = 4  # in an epoch of the tiny search


def kill_and_go_on(zygote, argv, place, faults):
    """Run the command again and again, each time with the next fault, then without one."""
    for fault in faults:
        result = zygote.run(argv, place, fault)
        assert result.code == -KILL, (fault, result)
    result = zygote.run(argv, place)
    assert result.code == 0, result.err
    return result


@pytest.fixture(scope="module")
def calls_of_a_step(zygote, world, memory_folder):
    """How many functions a step of the tiny search calls, its checkpoint included, at the least."""
    place = memory_folder / "calls"
    place.mkdir()
    (place / "data").symlink_to(world / "data")
    assert zygote.run([*SHORT, "-o", "run"], place, {"count_calls": str(place / "calls")}).code == 0
    return min(map(int, (place / "calls").read_text().split()))


def test_a_search_killed_in_every_part_of_a_step_ends_as_if_nothing_had_been(zygote, world, place, calls_of_a_step):
    """Parts of a step, its checkpoint included, in first, middle and last steps of first, middle and last epochs."""
    moments = [
        (0, 0, 0),  # nothing is saved yet
        (0, 0, 0.2),
        (0, 2, 0.4),
        (1, 0, 0),  # an epoch has ended, and the next one has not begun
        (1, 1, 0.6),
        (1, STEPS - 1, 0.8),
        (2, 0, 0.95),
        (2, STEPS - 1, 0),
    ]
    faults = [
        {"signal_at_step": [KILL, "search", epoch, step, int(part * calls_of_a_step)]} for epoch, step, part in moments
    ]
    kill_and_go_on(zygote, [*SEARCH, "-o", "run"], place, faults)
    assert_same_end(place / "run", world / "search")


def test_a_search_that_trains_candidates_killed_in_a_training_and_between_two_ends_the_same(zygote, world, place):
    argv = [*SHORT, "--strategy", "evolution", "--set", "strategy.judge=train", "--set", "strategy.candidates=3"]
    argv += ["--set", "strategy.population=2", "--set", "strategy.sample=1"]
    assert zygote.run([*argv, "-o", "whole"], place).code == 0
    faults = [
        {"signal_at_step": [KILL, "search", 1, 3, 500]},
        {"signals_at_file_event": [KILL, 1, "checkpoints/."]},  # between candidates, as between any steps
        {"signal_at_step": [KILL, "search", 2, 0, 0]},
    ]
    kill_and_go_on(zygote, [*argv, "-o", "run"], place, faults)
    assert_same_end(place / "run", place / "whole")


def test_a_progressive_search_killed_around_the_bound_of_its_stages_ends_the_same(zygote, world, place):
    argv = [*SHORT, "--epochs", "2", "--strategy", "progressive", "--set", "strategy.ops=3,2"]
    argv += ["--set", "strategy.add_layers=0,1", "--set", "strategy.skip_dropout=0,0.5"]
    assert zygote.run([*argv, "-o", "whole"], place).code == 0
    faults = [
        {"signal_at_step": [KILL, "search", 0, STEPS - 1, 800]},
        {"signal_at_step": [KILL, "search", 1, 0, 0]},  # the first stage is saved, and the second not begun
        {"signal_at_step": [KILL, "search", 1, 0, 800]},
        {"signal_at_step": [KILL, "search", 1, 1, 0]},
    ]
    kill_and_go_on(zygote, [*argv, "-o", "run"], place, faults)
    assert_same_end(place / "run", place / "whole")


def test_a_retraining_killed_in_pretraining_in_training_and_between_ends_the_same(zygote, world, place):
    faults = [
        {"signal_at_step": [KILL, "pretrain", 0, 3, 700]},
        {"signal_at_step": [KILL, "pretrain", 1, 4, 100]},
        {"signal_at_step": [KILL, "train", 0, 0, 0]},  # nothing of the training is saved yet
        {"signal_at_step": [KILL, "train", 0, 5, 400]},
        {"signals_at_file_event": [KILL, 0, "model.safetensors"]},
    ]
    kill_and_go_on(zygote, [*RETRAIN, "-o", "run"], place, faults)
    assert_same_end(place / "run", world / "retrain")


def test_a_kill_at_any_file_operation_of_a_save_costs_at_most_that_save(zygote, world, place):
    words = ["tensors.safetensors", "state.json", "manifest.json", "checkpoints/.", "checkpoints/000"]
    words += ["status.json", "lock"]
    faults = [{"signals_at_file_event": [KILL, let_pass, word]} for word in words for let_pass in (2, 5)]
    kill_and_go_on(zygote, [*SEARCH, "-o", "run"], place, faults)
    assert_same_end(place / "run", world / "search")


def test_a_kill_while_old_checkpoints_are_pruned_leaves_the_new_ones(zygote, world, place):
    faults = [
        {"signals_at_file_event": [KILL, let_pass, f"checkpoints/{number:010d}", "os.remove", "os.rmdir"]}
        for number, let_pass in ((1, 0), (2, 1), (3, 2), (4, 3))
    ]
    kill_and_go_on(zygote, [*SEARCH, "-o", "run"], place, faults)
    assert_same_end(place / "run", world / "search")
    assert len(list((place / "run" / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("word", ["metrics.jsonl", "alphas.safetensors"])
def test_a_kill_between_an_epochs_checkpoint_and_what_follows_from_it_loses_neither(zygote, world, place, word):
    # written once at the start, and after each epoch's checkpoint: before the renaming, and before there is a temporary
    faults = [
        {"signals_at_file_event": [KILL, 1, f".{word}.ssfnas", "os.rename"]},
        {"signals_at_file_event": [KILL, 1, f".{word}.ssfnas", "os.mkdir"]},
    ]
    kill_and_go_on(zygote, [*SEARCH, "-o", "run"], place, faults)
    assert_same_end(place / "run", world / "search")


def test_a_kill_between_the_genotype_and_the_word_done_only_repeats_the_end(zygote, world, place):
    result = zygote.run([*SEARCH, "-o", "run"], place, {"signals_at_file_event": [KILL, 0, "genotype.json"]})
    assert result.code == -KILL
    again = zygote.run([*SEARCH, "-o", "run"], place)
    assert again.code == 0 and "epoch 3/3:" not in again.err  # no epoch was run again
    assert_same_end(place / "run", world / "search")


def test_the_installed_script_survives_kills_too(zygote, world, place):
    """While it imports, and while it trains."""
    for fault in (
        {"signal_at_import": [KILL, "ssfnas_cli.engine.loop"]},
        {"signals_at_file_event": [KILL, 1, "checkpoints/0000000004"]},
    ):
        process = script(*SEARCH, "-o", "run", cwd=place, faults=fault)
        said = process.communicate()
        assert process.returncode == -KILL, said
    assert zygote.run([*SEARCH, "-o", "run"], place).code == 0
    assert_same_end(place / "run", world / "search")


OTHER_SEARCH = [
    *[*SEARCH, "--epochs", "2", "--batch-size", "16", "--order", "2", "--relax", "sigmoid", "--loss", "barlow"],
    *WITH_CONVOLUTIONS,
    *["--set", "alpha_loss.name=ce", "--set", "track_test=true", "--set", "warmup_epochs=1"],
]


def test_second_order_with_probe_projector_and_warm_up_resumes_exactly(zygote, place):
    assert zygote.run([*OTHER_SEARCH, "-o", "undisturbed"], place).code == 0
    faults = [{"signal_at_step": [KILL, "search", epoch, step, 1000]} for epoch, step in ((0, 1), (1, 0), (1, 1))]
    kill_and_go_on(zygote, [*OTHER_SEARCH, "-o", "run"], place, faults)
    assert_same_end(place / "run", place / "undisturbed")


def test_a_search_and_a_retraining_of_large_images_resume_exactly(zygote, place):
    assert zygote.run([*DATASET, "--image-size", "97", "-o", "large"], place).code == 0
    for command, phase in ((SEARCH, "search"), (RETRAIN, "train")):
        argv = [*command, "--data", "large", *(["--other-data"] if phase == "train" else []), "--epochs", "1"]
        result = zygote.run([*argv, "-o", f"{phase}-undisturbed"], place)
        assert result.code == 0 and "the stem 'imagenet'" in result.err, result.err
        faults = [{"signal_at_step": [KILL, phase, epoch, step, 500]} for epoch, step in ((0, 1), (0, 2))]
        kill_and_go_on(zygote, [*argv, "-o", phase], place, faults)
        assert_same_end(place / phase, place / f"{phase}-undisturbed")


def test_the_number_of_loader_workers_may_change_between_start_and_resume(zygote, world, place):
    for workers, epoch in ((2, 0), (0, 1), (1, 2)):
        fault = {"signal_at_step": [KILL, "search", epoch, 3, 100]}
        result = zygote.run([*SEARCH, "-o", "run", "--workers", str(workers)], place, fault)
        assert result.code == -KILL, result.err
    assert zygote.run([*SEARCH, "-o", "run", "--workers", "2"], place).code == 0
    assert_same_end(place / "run", world / "search")


def test_the_elapsed_time_goes_on_counting(zygote, place):
    kill_and_go_on(zygote, [*SEARCH, "-o", "run"], place, [{"signal_at_step": [KILL, "search", 2, 3, 0]}])
    text = (place / "run" / "metrics.jsonl").read_text().splitlines()
    seconds = [float(line.split('"elapsed_seconds": ')[1].rstrip("}")) for line in text]
    assert seconds == sorted(seconds) and seconds[0] > 0
