"""The decoder: pure torch, no files, no device choice, no training."""
