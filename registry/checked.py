"""What all models of settings and options refuse."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


class Checked(BaseModel):
    """A model whose numbers are no truth values: pydantic takes `true` as 1."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        given = value if isinstance(value, (list, tuple)) else [value]
        takes_truth = _takes_truth(cls.model_fields[str(info.field_name)].annotation)
        if not takes_truth and any(isinstance(one, bool) for one in given):
            raise ValueError("should be no true or false")
        return value


def _takes_truth(kind: Any) -> bool:
    """Whether a type, or a type within it, is that of true and false."""
    return kind in (bool, Any, True, False) or any(map(_takes_truth, get_args(kind)))
