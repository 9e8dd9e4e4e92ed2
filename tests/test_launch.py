"""launch.py: one line when something is missing, one set-up for one state of the checkout, nothing to do on later starts."""

import ast
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from studio import environment
from studio.environment import build, setup, verify
from studio.environment.build import CPU_INDEX, Torch
from studio.environment.errors import NotOffered, SetupError, explain
from studio.environment.installer import Activity, Progress, install
from studio.environment.setup import Stamp, key_of, python_of, read_stamp, ready

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the set-up reads."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records what would be installed. The environment is a link to this Python, which starts and has pip."""
    calls: list[list[str]] = []

    def create(root: Path) -> None:
        shutil.rmtree(root / ".venv", ignore_errors=True)
        python_of(root).parent.mkdir(parents=True)
        python_of(root).symlink_to(sys.executable)

    def record(python: Path, arguments: list[str], progress: Progress, *, root: Path, bar: str = "raw") -> None:
        calls.append(list(arguments))

    monkeypatch.setattr(setup, "install", record)
    monkeypatch.setattr(setup, "_create", create)
    monkeypatch.setattr(setup, "_check", lambda root, progress: [])
    monkeypatch.setattr(build, "has_nvidia_card", lambda: False)
    monkeypatch.delenv("STUDIO_TORCH_INDEX", raising=False)
    return calls


def run_as(version: tuple[int, int], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys; sys.version_info = ({version[0]}, {version[1]}, 0); sys.argv = ['launch.py', *{list(arguments)!r}]; runpy.run_path('launch.py')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_old_python_is_named_in_one_line() -> None:
    found = run_as((3, 10), "serve")
    assert found.returncode == 1
    assert "needs Python 3.11 or newer; this is 3.10" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_the_launcher_parses_in_any_python() -> None:
    """The message above can only be printed by a Python that can read the file."""
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Match, ast.AsyncFunctionDef, ast.TypeAlias if sys.version_info >= (3, 12) else ast.Match)
    source = (ROOT / "launch.py").read_text(encoding="utf-8")
    assert source.isascii()
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, newer)]


def test_a_second_start_does_nothing(checkout: Path, pip: list[list[str]]) -> None:
    python = ready(checkout, extras=set())
    assert python.exists() and pip
    pip.clear()
    assert ready(checkout, extras=set()) == python
    assert pip == []


def test_torch_comes_first_and_in_its_pinned_version(checkout: Path, pip: list[list[str]]) -> None:
    ready(checkout, extras={"test"})
    pins = (checkout / "constraints.txt").read_text(encoding="utf-8").split()
    torch_pin = next(pin for pin in pins if pin.startswith("torch=="))
    assert [call[-1] for call in pip] == ["pip", torch_pin, f"{checkout}[test]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_an_updated_checkout_updates_the_environment(checkout: Path, pip: list[list[str]], name: str) -> None:
    ready(checkout, extras={"test"})
    pip.clear()
    with (checkout / name).open("a") as file:
        file.write("\n")
    ready(checkout, extras=set())
    assert pip[-1][-1] == f"{checkout}[test]", "extras that were there once are kept up to date"


def test_a_moved_folder_is_set_up_again(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (other / name).write_bytes((checkout / name).read_bytes())
    assert key_of(checkout) != key_of(other)


def test_a_set_up_that_failed_leaves_no_stamp_and_goes_on_next_time(
    checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    working = setup.install

    def fail(*arguments: object, **options: object) -> None:
        raise SetupError("the disk is full")

    monkeypatch.setattr(setup, "install", fail)
    assert environment.main(checkout, ["doctor"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == "LoRA Studio: the disk is full"
    assert read_stamp(checkout / ".venv" / "stamp.json") is None
    monkeypatch.setattr(setup, "install", working)
    ready(checkout, extras=set())
    assert "finishing the interrupted set-up" in capsys.readouterr().err
    assert pip


def test_a_half_installed_environment_is_made_anew(checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    setup._create(checkout)  # what an interrupted set-up leaves: an environment without a stamp
    leftover = checkout / ".venv" / "leftover"
    leftover.touch()
    answers = [["numpy"], []]
    monkeypatch.setattr(setup, "_check", lambda root, progress: answers.pop(0))
    ready(checkout, extras=set())
    assert not leftover.exists() and answers == []


def test_a_package_that_stays_broken_is_an_error(checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_check", lambda root, progress: ["numpy"])
    with pytest.raises(SetupError, match="numpy did not install completely"):
        ready(checkout, extras=set())


def test_two_starts_at_once_set_up_once(checkout: Path, pip: list[list[str]]) -> None:
    threads = [threading.Thread(target=ready, args=(checkout,), kwargs={"extras": set()}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(pip) == 3


def test_a_virtual_environment_is_made_for_real(checkout: Path) -> None:
    setup._create(checkout)
    assert setup._runs(python_of(checkout))
    found = subprocess.run([str(python_of(checkout)), "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).resolve() == (checkout / ".venv").resolve()


def test_a_lost_interpreter_is_replaced(checkout: Path, pip: list[list[str]]) -> None:
    python = ready(checkout, extras=set())
    python.unlink()
    python.symlink_to(checkout / "gone")
    assert ready(checkout, extras=set()).resolve().exists()


def test_an_unreachable_index_gives_way_to_the_next(checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    record = setup.install
    tried: list[str] = []

    def offline(python: Path, arguments: list[str], progress: Progress, *, root: Path, bar: str = "raw") -> None:
        torch = arguments[-1].startswith("torch==")
        if torch:
            tried.append("local" if "--no-index" in arguments else "cpu index" if CPU_INDEX in arguments else "plain")
        if torch and tried[-1] != "plain":
            raise NotOffered("no connection")
        record(python, arguments, progress, root=root, bar=bar)

    monkeypatch.setattr(setup, "install", offline)
    monkeypatch.setattr(build.sys, "platform", "linux")
    ready(checkout, extras=set())
    assert tried == ["local", "cpu index", "plain"]


def test_a_named_torch_index_wins_and_is_remembered() -> None:
    rocm = Torch("index", "https://example.org/rocm")
    assert build.choose({"STUDIO_TORCH_INDEX": rocm.index}, None) == rocm
    assert build.choose({}, rocm) == rocm
    assert build.choose({"STUDIO_TORCH_INDEX": "auto"}, rocm).kind in ("cpu", "cuda")
    assert build.attempts(rocm) == [["--index-url", rocm.index]], "who names an index gets that one or an error"


def test_a_card_decides_and_one_seen_once_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_nvidia_card", lambda: True)
    assert build.choose({}, None) == build.choose({}, Torch("cpu")) == Torch("cuda")
    monkeypatch.setattr(build, "has_nvidia_card", lambda: False)
    assert build.choose({}, None) == Torch("cpu")
    assert build.choose({}, Torch("cuda")) == Torch("cuda"), "an eGPU that is unplugged today must not cost a download"


def test_another_torch_replaces_the_one_that_is_there(checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    ready(checkout, extras=set())
    pip.clear()
    monkeypatch.setenv("STUDIO_TORCH_INDEX", "https://example.org/rocm")
    ready(checkout, extras=set())
    torch = next(call for call in pip if call[-1].startswith("torch=="))
    assert "--force-reinstall" in torch and "https://example.org/rocm" in torch


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "is full"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '.venv'", "cannot be written"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(Failed to establish a new connection)'", "no connection"),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0 for Python"),
        ("Collecting x\nERROR: the build failed\n", "pip failed: the build failed"),
    ],
)
def test_what_pip_says_becomes_one_line(output: str, words: str, tmp_path: Path) -> None:
    message = str(explain(output, tmp_path, tmp_path / "log.txt"))
    assert words in message and "\n" not in message


def test_no_network_is_said_plainly(tmp_path: Path) -> None:
    """The real pip against a port on which nobody listens."""
    (tmp_path / ".setup").mkdir()
    arguments = ["--isolated", "--index-url", "http://127.0.0.1:9/simple", "--retries", "1", "--no-deps", "--target", str(tmp_path / "x"), "nothing-at-all"]
    with pytest.raises(NotOffered, match="no connection to the package index"):
        install(Path(sys.executable), arguments, Progress(sys.stderr, 1), root=tmp_path, bar="off")
    assert "127.0.0.1" in (tmp_path / ".setup" / "log.txt").read_text(encoding="utf-8")


def test_too_little_space_is_said_before_anything_is_written(checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    with pytest.raises(SetupError, match=r"1\.0 GiB free and the set-up needs 4"):
        ready(checkout, extras=set())
    assert not (checkout / ".venv").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(setup.Path, "mkdir", refuse)
    assert environment.main(tmp_path, []) == 1
    assert (
        capsys.readouterr().err.strip()
        == f"LoRA Studio: {tmp_path} cannot be written (Permission denied); move the folder to a place of your own and start again"
    )


def test_a_python_without_venv_names_the_debian_package(checkout: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"sudo apt install python3\.\d+-venv"):
        ready(checkout, extras=set())


def test_stopping_the_set_up_is_not_an_error_report(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "ready", stop)
    assert environment.main(checkout, []) == 130
    assert "Start again to go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "started"),
    [([], ["serve"]), (["--port", "8000"], ["serve", "--port", "8000"]), (["--help"], ["--help"]), (["train", "--images", "x"], ["train", "--images", "x"])],
)
def test_serve_is_the_default_verb(given: list[str], started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(environment, "ready", lambda root, extras: python_of(root))
    monkeypatch.setattr(environment, "_start", lambda python, arguments: calls.append(arguments) or 0)
    assert environment.main(tmp_path, given) == 0
    assert calls == [["-m", "studio", *started]]


def test_test_runs_pytest_with_workers_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(environment, "ready", lambda root, extras: Path("python"))
    monkeypatch.setattr(environment.subprocess, "call", lambda command, cwd, env: calls.append((command, env)) or 5)
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment.main(tmp_path, ["test", "-k", "launch"]) == 5
    assert environment.main(tmp_path, ["test", "-n", "0"]) == 5
    assert calls[0][0] == ["python", "-m", "pytest", "-n", "3", "--dist", "worksteal", "-k", "launch"]
    assert calls[0][1]["OMP_NUM_THREADS"] == "1"
    assert calls[1][0] == ["python", "-m", "pytest", "-n", "0"]


def package(site: Path, name: str) -> Path:
    """A package with one file, recorded as pip does."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (site / f"{name}.py").write_text("x = 1\n")
    (info / "RECORD").write_text(f"{name}.py,sha256=x,6\n{name}-1.0.dist-info/METADATA,,\n{name}-1.0.dist-info/RECORD,,\n")
    return site / f"{name}.py"


def test_a_truncated_file_or_a_lost_record_makes_a_package_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short, lost, gone = (package(tmp_path, name) for name in ("whole", "short", "lost", "gone"))
    short.write_text("x")
    (tmp_path / "lost-1.0.dist-info" / "RECORD").unlink()
    gone.unlink()
    assert whole.exists() and lost.exists()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert verify.broken() == ["gone", "lost", "short"]


def test_a_stamp_survives_a_round_trip_and_nonsense_is_no_stamp(tmp_path: Path) -> None:
    stamp = Stamp("key", frozenset({"test"}), Torch("index", "https://example.org"))
    stamp.write(tmp_path / "stamp.json")
    assert read_stamp(tmp_path / "stamp.json") == stamp
    for text in ("", "{}", "[]", json.dumps({"key": "k", "extras": 3, "torch": {}})):
        (tmp_path / "stamp.json").write_text(text)
        assert read_stamp(tmp_path / "stamp.json") is None


def test_progress_counts_bytes_and_packages(tmp_path: Path) -> None:
    activity = Activity(tmp_path)
    activity.read("  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (191.8 MB)\n")
    activity.read("Progress 50000000 of 191800000\n")
    assert activity.words == "downloading torch, 50 of 192 MB"
    activity.read("Installing collected packages: a, b, c\n")
    package(tmp_path, "a")
    activity.tick()
    assert activity.words == "installing, 1 of 3 packages"
