"""NPZ datasets for Sparsify."""
