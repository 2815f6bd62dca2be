"""Training-aware sparsification in PyTorch. Nothing is imported here, so that listing plugins stays fast."""
