"""The settings that say how a run is executed: where, with how many threads, for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ssfnas_cli.settings.base import Settings


def _seconds(value: Any) -> Any:
    """`3:50:00`, `50:00` or a number of seconds."""
    if isinstance(value, str) and value != "none":
        parts = value.split(":")
        if not 1 <= len(parts) <= 3 or not all(part.strip().replace(".", "", 1).isdigit() for part in parts):
            raise ValueError("should look like 3:50:00 (hours:minutes:seconds), 50:00 or 90")
        return sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
    return value


class Execution(Settings):
    """How a run is executed. Nothing here changes its results (up to the last bits), so none of it is identity."""

    data: str = Field("", description="data set folder; empty: the embedded one, or the genotype's")
    device: str = Field("auto", description="auto: the GPU if there is one; or cpu, cuda, …")
    threads: int = Field(0, ge=0, le=1024, description="processor threads; 0: torch's own choice")
    workers: int = Field(0, ge=0, le=1024, description="loader processes; 0: the main process loads")
    kernels: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="what computes cells (on a CPU, fp32) and views; auto: compiled if there is a C++ compiler",
    )
    compile: Literal["none", "default", "reduce-overhead"] = Field(
        "none",
        description="what torch.compile makes of networks that the kernels do not compute, which takes minutes at "
        "first; reduce-overhead: also CUDA graphs, for small networks on a GPU",
    )
    deterministic: bool = Field(
        False,
        description="on a GPU, only operations that always give the same bits, so that a resumed run ends as an "
        "undisturbed one; slower, and refused where torch has none. A CPU's always do",
    )
    save_minutes: float = Field(10.0, gt=0, description="minutes between checkpoints; one follows every epoch")
    keep_checkpoints: int = Field(2, ge=1, le=1_000_000, description="how many of the newest checkpoints are kept")
    log_seconds: float = Field(30.0, gt=0, description="seconds between progress lines off a terminal")
    tensorboard: bool = Field(
        False, description="event files for TensorBoard in the run's folder 'tensorboard'; needs ssfnas[tensorboard]"
    )
    max_time: Annotated[Literal["none"] | Annotated[float, Field(ge=0)], BeforeValidator(_seconds)] = Field(
        "none", description="save and stop (exit 75) after so many seconds, or hours:minutes:seconds"
    )

    @property
    def time_limit(self) -> float | None:
        """`max_time` in seconds since the program started, or None."""
        return None if self.max_time == "none" else float(self.max_time)
