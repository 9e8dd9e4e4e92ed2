"""Builders of what the project ships in assets: the demo base models and the sample image sets. Nothing imports them."""
