"""What is written is true: commands, routes and settings match the code; links and pictures exist.

`python -m tests.test_docs` writes the generated pages and tables anew; http.md is written by hand.
"""

import argparse
import re
import struct
import tempfile
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from studio import families
from studio.cli.flags import flag_of
from studio.cli.parser import build_parser
from studio.config import GenerateConfig, Settings, TrainConfig
from studio.jobs.spec import TOOLS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "assets" / "docs"
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *DOCS.glob("*.md")])
SOURCE = "python -m tests.test_docs"


def verbs(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """Verb -> its parser."""
    for action in (parser or build_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def words_of(parser: argparse.ArgumentParser) -> str:
    text = (parser.description or "").rstrip(".")
    return text if text.startswith("LoRA") else text[0].lower() + text[1:]


def verb_table() -> str:
    rows = ["| verb | does |", "| --- | --- |"]
    for name, parser in verbs().items():
        actions = " ".join(f"`{action}`" for action in verbs(parser))
        rows.append(f"| `{name}` | {words_of(parser)}{': ' + actions if actions else ''} |")
    return "\n".join(rows)


def command_page() -> str:
    lines = ["# Command line", "", "`lora-studio VERB`, `python -m studio VERB` and `python launch.py VERB` are the same.", ""]
    for name, parser in verbs().items():
        for title, one in ([(f"{name} {action}", sub) for action, sub in verbs(parser).items()]) or [(name, parser)]:
            lines += [f"## {title}", "", f"{one.description}", "", "| argument | means |", "| --- | --- |"]
            lines += [f"| {_argument(action)} | {_cell((action.help or '').replace('%%', '%'))} |" for action in one._actions if action.dest != "help"]
            lines.append("")
    return "\n".join(lines)


def _argument(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    if not action.option_strings:
        return f"`{_cell(metavar)}`"
    takes = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else f" {metavar}"
    return " ".join(f"`{_cell(option)}{_cell(takes)}`" for option in action.option_strings)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "The same names everywhere: on the command line with dashes (`--batch-size`), in TOML files, JSON and HTTP with underscores. A setting",
        "without a default is filled from the base model, else from its family; what was used is recorded with the run and the picture.",
    ]
    for title, kind in (("Training", TrainConfig), ("Generation", GenerateConfig), *((name.capitalize(), kind) for name, kind in TOOLS.items())):
        lines += ["", f"## {title}", "", "| setting | default | allowed | means |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{name}` | {_default(field)} | {_cell(_allowed(field))} | {_cell(field.description or '')} |" for name, field in kind.model_fields.items()
        ]
    for name in families.FAMILIES:
        facts = families.get(name).facts
        lines += ["", f"## Defaults of {facts.title}", "", "| setting | training | generation | because |", "| --- | --- | --- | --- |"]
        for setting in dict.fromkeys([*facts.defaults["train"], *facts.defaults["generate"], *facts.reasons]):
            train, draw = (facts.defaults[act].get(setting, "") for act in ("train", "generate"))
            lines.append(f"| `{setting}` | {train} | {draw} | {_cell(facts.reasons.get(setting, ''))} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default in (None, "", ()) else f"`{field.default}`"


def _allowed(field: FieldInfo) -> str:
    choices = re.search(r"Literal\[(.*?)\]", str(field.annotation))
    if choices:
        return choices[1].replace("'", "").replace(", ", " | ")
    bounds = {type(rule).__name__: rule for rule in field.metadata}
    low, high = (next((getattr(bounds[n], n.lower()) for n in names if n in bounds), None) for names in (("Ge", "Gt"), ("Le", "Lt")))
    if low is None and high is None:
        return ""
    return f"{'above ' if 'Gt' in bounds else ''}{low if low is not None else ''} to {high}" if high is not None else f"{low} or more"


STREAM = ("WS", "/api/stream")  # FastAPI's schema leaves WebSockets out


def routes() -> list[tuple[str, str]]:
    """(method, path) of every route under /api, by path."""
    from studio.api import app
    from studio.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder, Workspace.open(Path(folder)) as workspace:
        paths: dict[str, dict[str, object]] = app(workspace).openapi()["paths"]
    return sorted([STREAM, *((method.upper(), path) for path, methods in paths.items() for method in methods)], key=lambda route: (route[1], route[0]))


def route_table() -> str:
    """One row per subject with its routes."""
    subjects: dict[str, list[str]] = {}
    for method, path in routes():
        subject = "/".join(path.split("/")[:3])
        subjects.setdefault(subject, []).append(f"`{method} {path.removeprefix(subject)}".rstrip() + "`")
    return "\n".join(["| under | routes |", "| --- | --- |", *(f"| `{subject}` | {' · '.join(paths)} |" for subject, paths in subjects.items())])


def between(text: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", text, re.DOTALL)
    assert found, f"README.md lost its <!-- {mark} --> marks"
    return found[1].strip()


def test_the_command_table_matches_the_parser() -> None:
    assert between(README.read_text(encoding="utf-8"), "verbs") == verb_table(), f"write it anew: {SOURCE}"


def test_the_command_page_matches_the_parser() -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == command_page(), f"write it anew: {SOURCE}"


def test_the_settings_page_matches_the_classes() -> None:
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page(), f"write it anew: {SOURCE}"


def test_the_route_table_matches_the_routes() -> None:
    assert between(README.read_text(encoding="utf-8"), "routes") == route_table(), f"write it anew: {SOURCE}"


def test_the_route_page_tells_of_every_route_and_no_other() -> None:
    told = re.findall(r"^\| `(\w+) (/api[^`]*)` \| \S", (DOCS / "http.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(routes())


@pytest.mark.parametrize("kind", [TrainConfig, GenerateConfig, *TOOLS.values()])
def test_every_setting_says_what_it_means(kind: type[Settings]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} points at {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_are_real(page: Path) -> None:
    """Every `lora-studio ...` or `launch.py ...` that is shown names a verb and flags that exist."""
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"(?:lora-studio|launch\.py) +([a-z][^\n`]*)", text):
        words = command.split("#")[0].split()
        if words[0] == "test":
            continue
        assert words[0] in verbs(), f"{page.name}: {command!r}"
        parser = verbs()[words[0]]
        parser = verbs(parser).get(words[1], parser) if len(words) > 1 and verbs(parser) else parser
        known = {option for action in parser._actions for option in action.option_strings}
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
        assert not unknown, f"{page.name}: {command!r} has {unknown}"


def test_the_readme_begins_with_the_two_commands_and_pictures() -> None:
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line]
    assert lines[0] == "# LoRA Studio"
    assert lines[2].startswith("python launch.py ") and lines[3].startswith("python launch.py test")
    pictures = [line for line in lines[5:8] if line.startswith("![")]
    assert len(pictures) == 3
    for line in pictures:
        width, height = png_size(ROOT / re.findall(r"\(([^)]+)\)", line)[0])
        assert width >= 1000 and height >= 600, f"{line} is {width}x{height}: no screenshot of the page"


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG"), f"{path.name} is no PNG"
    width, height = struct.unpack(">II", header[16:])
    return width, height


def test_flags_are_settings_with_dashes() -> None:
    assert flag_of("learning_rate") == "--learning-rate"


def write() -> None:
    """The generated pages and tables."""
    for name, text in (("settings.md", settings_page()), ("cli.md", command_page())):
        (DOCS / name).write_text(text, encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    for mark, table in (("verbs", verb_table()), ("routes", route_table())):
        head, rest = readme.split(f"<!-- {mark} -->\n")
        readme = f"{head}<!-- {mark} -->\n{table}\n<!-- /{mark} -->{rest.split(f'<!-- /{mark} -->')[1]}"
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    write()
