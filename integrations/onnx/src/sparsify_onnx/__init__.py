"""ONNX models for Sparsify."""
