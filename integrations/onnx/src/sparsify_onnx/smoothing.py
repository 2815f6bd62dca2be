"""Smoothing."""


def has_norms(model: object) -> bool:
    """Say."""
    return False
