"""Detectors as one pure function of tensors, and files of it that run without PyTorch."""
