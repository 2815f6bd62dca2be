"""DeepSparse as a runtime for Sparsify. Nothing is imported here, so that listing plugins stays fast."""
