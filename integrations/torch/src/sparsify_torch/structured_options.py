"""The fields of the modifiers that remove channels and layers, as recipes spell them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Epoch = Annotated[float, Field(ge=-1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StructuredPruningOptions(_Options):
    """Zero whole filters or channels step by step, up to a share of them.

    Fields of StructuredPruningModifier (SPEC-FACTS B.4); `multiple` and `score` are ours.
    """

    init_sparsity: Share
    final_sparsity: Share
    start_epoch: Epoch
    end_epoch: Epoch
    update_frequency: float
    param_groups: list[list[str]] | None = None
    params: Names = ["__ALL_PRUNABLE__"]
    leave_enabled: bool = True
    inter_func: Literal["linear", "cubic", "inverse_cubic"] = "cubic"
    mask_type: Literal["filter", "channel"] = "filter"
    multiple: Annotated[int, Field(ge=1)] = 16
    score: Literal["l2", "l1", "bn", "taylor"] = "l2"

    @model_validator(mode="after")
    def _in_order(self) -> StructuredPruningOptions:
        if self.end_epoch <= self.start_epoch:
            raise ValueError(f"end_epoch {self.end_epoch} is not after start_epoch {self.start_epoch}")
        if self.final_sparsity < self.init_sparsity:
            raise ValueError(f"final_sparsity {self.final_sparsity} is below init_sparsity {self.init_sparsity}")
        return self


class LayerThinningOptions(_Options):
    """Remove from the module what was zeroed.

    `param_group_dependency_map` of old recipes names what goes together; here it is found by tracing, so it may be left
    out, and a given one is not needed.
    """

    param_group_dependency_map: str | dict[str, Any] | None = None
    structure_type: Literal["filter", "channel"] = "filter"
    start_epoch: Epoch = -1
    update_epochs: list[float] | None = None
    strict: bool = True
    end_epoch: Epoch = -1


class LayerPruningOptions(_Options):
    """Take whole layers out; they come back at `end_epoch` where one is given."""

    layers: Names
    start_epoch: Epoch = -1
    end_epoch: Epoch = -1
    update_frequency: float = -1
