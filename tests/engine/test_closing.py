"""What a finished training says about its accuracy."""

import pytest

from ssfnas_cli.engine.closing import is_still_rising


@pytest.mark.parametrize(
    ("accuracies", "rising"),
    [
        ([10, 20, 30, 40], True),
        ([80, 80.1, 79.9, 80.2], False),
        ([10, 50, 80, 90, 90, 90, 90, 90.5], False),  # only the last epochs count
        ([40, 50, 60], False),  # too few to tell
        ([96, 97, 98.5, 99.5], False),  # nothing is left to gain
        ([80, 70, 60, 50], False),
        ([60, 62, 59, 63, 61, 62, 60, 63, 60, 62, 61, 61], False),  # noise around a level
    ],
)
def test_accuracy_is_still_rising_if_a_line_through_the_last_epochs_is(accuracies, rising):
    assert is_still_rising(accuracies) is rising
