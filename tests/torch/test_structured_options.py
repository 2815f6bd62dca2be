"""Fields of the modifiers that remove structures, as old recipes give them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from sparsify_torch.structured_options import LayerPruningOptions, LayerThinningOptions, StructuredPruningOptions

GRADUAL: dict[str, Any] = {
    "init_sparsity": 0.05,
    "final_sparsity": 0.5,
    "start_epoch": 0.0,
    "end_epoch": 5.0,
    "update_frequency": 0.5,
}


def test_defaults_are_those_of_the_grammar() -> None:
    options = StructuredPruningOptions(**GRADUAL)
    assert (options.params, options.mask_type, options.inter_func) == (["__ALL_PRUNABLE__"], "filter", "cubic")
    assert StructuredPruningOptions(**options.model_dump()) == options
    assert StructuredPruningOptions(**GRADUAL, params="layer1.*").params == ["layer1.*"]
    assert LayerThinningOptions(param_group_dependency_map="{}").structure_type == "filter"
    assert LayerPruningOptions(layers=["layer1.1"]).end_epoch == -1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"end_epoch": 0.0}, "is not after start_epoch"),
        ({"final_sparsity": 0.01}, "is below init_sparsity"),
        ({"mask_type": "block4"}, "'filter' or 'channel'"),
        ({"sparsity": 0.5}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StructuredPruningOptions(**{**GRADUAL, **changed})
