"""The command line: `lora-studio VERB ...`."""


def main() -> int:
    return 2
