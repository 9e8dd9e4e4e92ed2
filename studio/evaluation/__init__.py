"""Measure what LoRAs do to pictures."""
