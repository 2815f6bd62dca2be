"""The plugins that need torch conform, every target imported."""

from __future__ import annotations

import pytest
from sparsify_plugin_kit import check_plugin


@pytest.mark.parametrize("name", ["torch", "image-classification"])
def test_a_plugin_conforms(name: str) -> None:
    assert [str(finding) for finding in check_plugin(name)] == []
