"""The way into tests/warm.py for a process that is forked, so that whoever asks for it does not load all of that too."""


def run(name: str, *arguments: object) -> None:
    """Become the process that this function of tests/warm.py is."""
    from tests import warm

    getattr(warm, name)(*arguments)
