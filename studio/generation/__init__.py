"""Pictures from a base and a stack of LoRAs, and the text inside them."""
