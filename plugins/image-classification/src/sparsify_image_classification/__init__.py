"""Image classification for Sparsify."""
