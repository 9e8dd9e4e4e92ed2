"""Measured speed and memory of the studio's own paths."""
