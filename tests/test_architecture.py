"""The house keeps its plan: who may import whom, how large things may grow, and what must not appear at all."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDIO = ROOT / "studio"
FILES = sorted(STUDIO.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

WORDS = {"config", "events", "errors", "container", "killpoints", "metadata"}
MODELS = WORDS | {"families", "lora", "data", "footprint"}
ENGINES = {"training", "generation", "evaluation", "bench"}
# Room -> rooms it may import. A front end sees the use cases and the shared words, and starts its neighbours.
ARROWS = {
    "config": {"errors"},
    "errors": set[str](),
    "events": {"errors"},
    "container": {"errors"},
    "killpoints": set[str](),
    "metadata": {"errors", "container"},
    "families": WORDS,
    "footprint": WORDS | {"families"},
    "lora": WORDS | {"families"},
    "data": WORDS | {"families"},
    "training": MODELS,
    "generation": MODELS,
    "evaluation": MODELS | {"training", "generation"},
    "bench": MODELS | {"training", "generation"},
    "demo": MODELS | ENGINES,
    "library": MODELS,
    "jobs": MODELS | ENGINES | {"library"},
    "workspace": MODELS | {"jobs", "library", "generation"},
    "api": {"workspace", "config", "events", "errors"},
    "ui": {"workspace", "config", "events", "errors", "api"},
    "cli": {"workspace", "config", "events", "errors", "ui"},
    "__main__": {"cli"},
    "environment": set[str](),
    "__init__": set[str](),
}
FRAMEWORKS = {
    "gradio": {"ui"},
    "fastapi": {"api", "ui"},
    "starlette": {"api", "ui"},
    "uvicorn": {"api", "ui"},
    "sqlalchemy": {"library", "jobs", "workspace"},
    "alembic": {"library"},
    "rich": set[str](),
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
FAMILY_ROOMS = ("families", "lora/formats", "demo")
MAX_FILE, MAX_FUNCTION, MAX_SIGNATURE = 400, 60, 8


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    first = path.relative_to(STUDIO).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in the file, those inside functions and TYPE_CHECKING blocks included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def studio_imports(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "studio" and len(parts) > 1 and not parts[1].startswith("__version__"):
            yield line, parts[1]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(path)
    assert here in ARROWS, f"studio/{here} is not on the plan of the house; give it a line in ARROWS"
    wrong = [f"{path.name}:{line} imports studio.{there}" for line, there in studio_imports(path) if there != here and there not in ARROWS[here]]
    assert not wrong, f"studio/{here} may import {sorted(ARROWS[here])}: {wrong}"


def test_the_arrow_check_sees_imports_inside_functions() -> None:
    found = {there for path in FILES if room(path) == "cli" for _, there in studio_imports(path)}
    assert "workspace" in found, "the command line imports the workspace lazily; if it is not seen here, the check above is blind"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_frameworks_stay_in_their_rooms(path: Path) -> None:
    wrong = [f"line {line}: {name}" for line, name in imports(path) if room(path) not in FRAMEWORKS.get(name.split(".")[0], {room(path)})]
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}; allowed: {FRAMEWORKS}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_functions_and_signatures_stay_small(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    wrong = [f"{n_lines} lines, limit {MAX_FILE}"] if n_lines > MAX_FILE else []
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg not in ("self", "cls")]
        if length > MAX_FUNCTION and "migrations" not in path.parts:  # a migration is one list of tables
            wrong.append(f"{function.name} is {length} lines, limit {MAX_FUNCTION}")
        if len(names) > MAX_SIGNATURE and "jit" not in {getattr(mark, "attr", "") for mark in function.decorator_list}:  # a GPU kernel has no objects
            wrong.append(f"{function.name} takes {len(names)} names, limit {MAX_SIGNATURE}")
    assert not wrong, f"{path.relative_to(ROOT)}: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_public_functions_are_annotated(path: Path) -> None:
    wrong = []
    for function in functions(path):
        arguments = [a for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
        if not function.name.startswith("_") and (function.returns is None or any(a.annotation is None for a in arguments)):
            wrong.append(f"{function.name} (line {function.lineno})")
    assert not wrong, f"{path.relative_to(ROOT)}: without annotations: {wrong}"


def test_no_module_is_a_drawer_for_everything() -> None:
    wrong = [path for path in FILES if set(path.relative_to(STUDIO).with_suffix("").parts) & FORBIDDEN_NAMES]
    assert not wrong, f"name the noun these files are about: {wrong}"


def family_literals(source: ast.AST) -> list[int]:
    """Lines on which a family's name steers the flow: in a comparison, a match case or a dictionary key that is looked up."""
    lines = []
    for node in ast.walk(source):
        if isinstance(node, ast.Compare | ast.MatchValue):
            values = [leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
            lines += [node.lineno] if {"sdxl", "flux"} & {v for v in values if isinstance(v, str)} else []
    return lines


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_branch_on_a_family_outside_its_rooms(path: Path) -> None:
    if str(path.relative_to(STUDIO).as_posix()).startswith(FAMILY_ROOMS):
        return
    assert family_literals(tree(path)) == [], f"{path.relative_to(ROOT)}: declare the difference as a fact of the family instead"


def test_the_family_check_sees_comparisons() -> None:
    assert family_literals(ast.parse("if base.family == 'flux':\n    pass")) == [1]
    assert family_literals(ast.parse("match family:\n    case 'sdxl':\n        pass")) == [2]
    assert family_literals(ast.parse("titles = {'flux': 1}")) == []


BANNED_CALLS = {
    "torch.load": "runs code from the file; use safetensors",
    "pickle.load": "runs code from the file",
    "pickle.loads": "runs code from the file",
    "joblib.load": "runs code from the file",
    "marshal.loads": "runs code from the file",
    "yaml.load": "runs code from the file; use yaml.safe_load",
    "os.system": "takes a shell line; use subprocess with a list",
    "eval": "runs text",
    "exec": "runs text",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_runs_code_from_files(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in BANNED_CALLS:
                wrong.append(f"line {node.lineno}: {name} {BANNED_CALLS[name]}")
            if any(k.arg in ("shell", "trust_remote_code") and isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords):
                wrong.append(f"line {node.lineno}: {name} with shell or trust_remote_code")
    wrong += [f"line {line}: imports {name}" for line, name in imports(path) if name.split(".")[0] in ("pickle", "shelve", "marshal", "dill")]
    assert not wrong, f"{path.relative_to(ROOT)}: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_exception_is_swallowed(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or dotted(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body):
                wrong.append(node.lineno)
    assert not wrong, f"{path.relative_to(ROOT)}: lines {wrong} drop every exception; name the one that may happen and say why it may"


UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
OWN_MACHINE = re.compile(r"(?<![\w/.~-])/(?:home|root|work|Users)/|(?<![\w/.])/tmp/|~/")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_left_unfinished_or_names_a_machine(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    wrong = [f"{i}: {line.strip()[:80]}" for i, line in enumerate(lines, 1) if UNFINISHED.search(line) or OWN_MACHINE.search(line)]
    assert not wrong, f"{path.relative_to(ROOT)}: {wrong}"


def test_the_web_process_never_imports_torch() -> None:
    """A page must be up in seconds, and a crash of the GPU must cost one job, not the studio."""
    heavy = ("torch", "diffusers", "transformers", "peft")
    code = f"import sys, studio.workspace, studio.api, studio.ui.serve, studio.cli\nprint([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"


def test_the_command_line_answers_help_without_the_page() -> None:
    code = "import sys, studio.cli\nprint([m for m in ('torch', 'gradio', 'fastapi', 'sqlalchemy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


def test_the_set_up_needs_only_the_standard_library() -> None:
    wrong = []
    for path in [ROOT / "launch.py", *sorted((STUDIO / "environment").glob("*.py"))]:
        names = {name.split(".")[0] for _, name in imports(path)} - {"studio"}
        allowed = sys.stdlib_module_names | ({"torch"} if path.name == "verify.py" else set())  # verify runs inside the environment
        wrong += [f"{path.name}: {name}" for name in names - allowed]
    assert not wrong, wrong


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    return {re.split(r"[\[<>=!~ ]", line)[0].lower().replace("_", "-") for line in wanted}


def test_every_import_is_a_declared_dependency() -> None:
    owners = packages_distributions()
    wrong = []
    for path in FILES:
        for line, name in imports(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("studio", "triton"):  # triton comes with torch, and only where a GPU can use it
                continue
            if not {owner.lower().replace("_", "-") for owner in owners.get(top, [])} & declared():
                wrong.append(f"{path.relative_to(ROOT)}:{line} {top}")
    assert not wrong, f"add to pyproject.toml, and its version to constraints.txt: {wrong}"


def test_every_dependency_has_an_exact_version() -> None:
    pins = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    assert declared() <= pins, f"no version in constraints.txt: {declared() - pins}"


def test_ruff_finds_nothing() -> None:
    for command in (["check"], ["format", "--check"]):
        found = subprocess.run([sys.executable, "-m", "ruff", *command, "launch.py", "studio", "tests"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr


def test_pyright_finds_nothing() -> None:
    found = subprocess.run([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-1000:]
