"""What can be set for `derive --rule perturbation`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ssfnas_cli.settings.execution import Execution
from ssfnas_cli.settings.models import Rate

PERTURBATION_RULE = "perturbation"  # the derivation rule that is a run of its own
Criterion = Literal["accuracy", "balanced_accuracy", "loss"]


class PerturbationSettings(Execution):
    """A derivation by perturbation of a finished search, from which it takes everything else that trains a supernet."""

    epochs_between: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        5, description="epochs in which the supernet is tuned after each decision"
    )
    criterion: Criterion = Field(
        "accuracy", description="what an op is judged by: what the supernet loses of it, on the alpha half, without it"
    )
    lr: Literal["auto"] | Rate = Field(
        "auto", description="learning rate of the tuning; falls to the search's lr_min; auto: a tenth of the search's"
    )

    def execution(self) -> dict[str, Any]:
        """The settings that change no result, except the place of the data set."""
        return {name: getattr(self, name) for name in Execution.model_fields if name != "data"}

    def identity(self) -> dict[str, Any]:
        """The settings that differ from the defaults: a new setting changes none."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in Execution.model_fields}
        return {name: value for name, value in own.items() if value != type(self).model_fields[name].default}
