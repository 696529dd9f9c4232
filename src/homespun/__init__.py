"""Homespun trains small language models from scratch on your own text."""
