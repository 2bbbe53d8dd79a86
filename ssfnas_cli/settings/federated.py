"""What can be set for a federated search (FedNAS): who has which images, and when weights and alphas are averaged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ssfnas_cli.settings.base import PositiveInt, Settings


class Federated(Settings):
    """The part of the settings of a search that says whether clients search together, and how."""

    clients: Literal["none"] | PositiveInt = Field(
        "none", description="with sync=round: among how many clients the training images are divided"
    )
    sync: Literal["step", "round"] = Field(
        "step",
        validate_default=True,
        description="step: one search, whose ranks add up the gradients of every step; round: a federated one, whose "
        "clients take steps on images of their own and then average weights and alphas",
    )
    partition: Literal["equal", "by_class", "dirichlet"] = Field(
        "equal",
        description="with sync=round: which images a client has. equal: as many as the others, at random; by_class: "
        "all images of classes of its own; dirichlet: shares of every class from Dirichlet(partition_alpha)",
    )
    partition_alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(
        0.5, description="with partition=dirichlet: the smaller, the more the clients differ"
    )
    local_steps: PositiveInt = Field(1, description="with sync=round: steps of a client between two averages")
    clients_per_round: Literal["all"] | PositiveInt = Field(
        "all", description="with sync=round: how many clients are drawn for a round"
    )

    @field_validator("sync")
    @classmethod
    def _has_clients(cls, sync: str, info: ValidationInfo) -> str:
        clients = info.data.get("clients", "none")
        if sync == "round" and clients == "none" and "clients" in info.data:
            raise ValueError("needs clients: set their number, such as clients=4")
        if sync == "step" and clients != "none":
            raise ValueError(f"clients={clients} is of a federated search: set sync=round, too, or leave clients out")
        return sync

    @field_validator("partition", "partition_alpha", "local_steps", "clients_per_round")
    @classmethod
    def _is_of_rounds(cls, value: Any, info: ValidationInfo) -> Any:
        usual = cls.model_fields[str(info.field_name)].default
        if value != usual and info.data.get("sync", "round") != "round":
            raise ValueError("is of a federated search: set sync=round and clients, too")
        return value

    @field_validator("partition_alpha")
    @classmethod
    def _is_of_dirichlet(cls, alpha: float, info: ValidationInfo) -> float:
        how = info.data.get("partition", "dirichlet")
        if alpha != cls.model_fields["partition_alpha"].default and how != "dirichlet":
            raise ValueError(f"is of the Dirichlet distribution, and partition is '{how}': set partition=dirichlet")
        return alpha

    @field_validator("clients_per_round")
    @classmethod
    def _are_there(cls, drawn: int | str, info: ValidationInfo) -> int | str:
        clients = info.data.get("clients", "none")
        if isinstance(drawn, int) and isinstance(clients, int) and drawn > clients:
            raise ValueError(f"there are {clients} clients: draw no more of them, or set more clients")
        return drawn

    @property
    def is_federated(self) -> bool:
        """Whether clients search together."""
        return self.sync == "round"

    def unused(self) -> frozenset[str]:
        """As for every command; and what is said of ranks to clients, whose batches are their own."""
        return super().unused() | ({"batch_stats"} if self.is_federated else set())
