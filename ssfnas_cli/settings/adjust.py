"""What can be set for `adjust`, and which of its methods has a use for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings.execution import Execution
from ssfnas_cli.settings.models import PositiveInt, Rate

TRAINED = ("epochs", "batch_size", "lr")
USES = {  # the settings that each method has a use for
    "logit": ("tau", "from_prior"),
    "tau-norm": ("tau",),
    "crt": TRAINED,
    "lws": TRAINED,
    "temperature": ("from_prior",),
}
ADJUST_METHODS = tuple(USES)


class AdjustSettings(Execution):
    """A correction of a finished retraining, from which it takes the seed, momentum, weight decay and clipping."""

    method: Literal["logit", "tau-norm", "crt", "lws", "temperature"] = Field(
        "logit",
        description="the correction; crt and lws train a classifier on frozen features, the others train nothing",
    )
    tau: Literal["auto"] | Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="strength of logit and tau-norm; auto: chosen by balanced accuracy on held-out images"
    )
    from_prior: str = Field(
        "", description="the prior that the outputs hold: train, uniform or a file of counts; empty: as recorded"
    )
    epochs: PositiveInt = Field(10, description="epochs of crt and lws")
    batch_size: Literal["auto"] | Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        "auto", description="images a step of crt and lws; auto: the run's"
    )
    lr: Rate = Field(0.025, description="learning rate of crt and lws; falls to 0 along a cosine")

    def execution(self) -> dict[str, Any]:
        """The settings that change no result, except the place of the data set."""
        return {name: getattr(self, name) for name in Execution.model_fields if name != "data"}

    def identity(self) -> dict[str, Any]:
        """The method, and the settings that it uses and that differ from the defaults: a new setting changes none."""
        used = {name: getattr(self, name) for name in USES[self.method]}
        changed = {name: value for name, value in used.items() if value != type(self).model_fields[name].default}
        return {"method": self.method} | changed


def refuse_useless(settings: AdjustSettings) -> None:
    """Refuse a setting that the method has no use for, unless it has its default, as in what --show-settings prints.

    Raises:
        UsageError: there is one.
    """
    for name in {name: None for names in USES.values() for name in names if name not in USES[settings.method]}:
        if getattr(settings, name) != AdjustSettings.model_fields[name].default:
            methods = " and ".join(method for method, names in USES.items() if name in names)
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: is for --method {methods}, not for {settings.method}: leave it out")
