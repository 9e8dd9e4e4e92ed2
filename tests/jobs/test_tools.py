"""Adapter tools as jobs: from names to files, into the library, and nothing half-done after a cancel."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.errors import Cancelled, FormatError, InputError, SettingsError
from studio.events import Event, Exported, Finished
from studio.families import sources
from studio.jobs import tools
from studio.jobs.folder import FolderRequests, JobFolder
from studio.jobs.handlers import Warm, Work
from studio.jobs.worker import stoppable
from studio.lora import formats
from studio.lora.adapter import Adapter, LowRank
from studio.metadata import read_header
from studio.workspace import Workspace

MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def lora(path: Path, seed: int, family: str = "sdxl") -> Path:
    """A LoRA on one layer of a demo base."""
    module = MODULE if family == "sdxl" else "transformer.transformer_blocks.0.attn.to_out.0"
    base = "demo-sdxl" if family == "sdxl" else "demo-flux"
    from studio.families import stored

    with stored.opened(sources.find(base)) as weights:
        out, into = weights.shapes[f"{module}.weight"]
    draw = torch.Generator().manual_seed(seed)
    layer = LowRank(torch.randn(4, into, generator=draw) * 0.05, torch.randn(out, 4, generator=draw) * 0.05, 4.0)
    formats.write(Adapter(family, {module: layer}), path, dtype="fp32", metadata={"modelspec.title": path.stem, "ss_output_name": path.stem})
    return path


@pytest.fixture
def closed(tmp_path: Path) -> Workspace:
    """A workspace whose queue is not started."""
    return Workspace.open(tmp_path / "data")


def work(studio: Workspace, id: str) -> Work:
    folder = JobFolder.of(studio.layout.jobs, id)
    return Work(folder, folder.manifest(), studio.layout, FolderRequests(folder.path), Warm("cpu"))


def done(studio: Workspace, kind: str, values: dict[str, Any]) -> list[Event]:
    """What the tool says, run in this process."""
    job = studio.tools.run(kind, values)
    return list(tools.HANDLERS[kind](work(studio, job.id)))


def test_tools_feed_each_other_through_the_library(studio: Workspace, tmp_path: Path) -> None:
    """Merge two files, resize the result, bake it, extract it again: through a real worker, every adapter in the library."""
    one, two = studio.library.add(lora(tmp_path / "tool-one.safetensors", 1)), lora(tmp_path / "tool-two.safetensors", 2)
    steps: list[tuple[str, dict[str, Any]]] = [
        ("merge", {"loras": [f"{one.name}=0.8", f"{two}=-0.5"], "name": "mixed", "dtype": "fp32"}),
        ("resize", {"source": "mixed", "rank": 3, "dtype": "fp32"}),
        ("bake", {"base": "demo-sdxl", "loras": ["mixed"], "output": str(tmp_path / "baked.safetensors"), "dtype": "fp32"}),
        ("extract", {"tuned": str(tmp_path / "baked.safetensors"), "base": "demo-sdxl", "rank": 8, "name": "back", "dtype": "fp32"}),
    ]
    for kind, values in steps:
        job = studio.tools.run(kind, values)
        events = list(studio.jobs.follow(job.id))
        assert [event.kind for event in events if event.kind != "loading"] == ["exported", "finished"], events
        assert studio.jobs.show(job.id).state == "finished"
    result = studio.jobs.show("mixed-r3").result
    assert result["layers"] == 1 and result["ranks"] == [3, 3] and 0 < result["residual"] < 1
    mixed, small, back = (formats.read(studio.library.path(name)) for name in ("mixed", "mixed-r3", "back"))
    expected = 0.8 * formats.read(studio.library.path(one.id)).layers[MODULE].delta() - 0.5 * formats.read(two).layers[MODULE].delta()  # type: ignore[call-arg]
    assert torch.allclose(mixed.layers[MODULE].delta(), expected, atol=1e-6)  # type: ignore[call-arg]
    assert small.layers[MODULE].rank == 3
    assert formats.difference(back.layers[MODULE], mixed.layers[MODULE]) < 1e-3
    assert mixed.metadata["modelspec.merged_from"] == "tool-one, tool-two"
    again = studio.jobs.retry("back")
    assert again.kind == "extract" and again.config["rank"] == 8
    studio.jobs.cancel(again.id)


def test_a_named_file_stays_outside_the_library(closed: Workspace, tmp_path: Path) -> None:
    source = lora(tmp_path / "a.safetensors", 1)
    events = done(closed, "resize", {"source": str(source), "energy": 0.9, "output": str(tmp_path / "out" / "small.safetensors"), "format": "peft"})
    exported = next(event for event in events if isinstance(event, Exported))
    assert exported.path == (tmp_path / "out" / "small.safetensors").as_posix() and exported.report["tool"]["kind"] == "resize"
    assert isinstance(events[-1], Finished) and formats.read(Path(exported.path)).metadata["modelspec.title"] == "small"
    assert any(key.endswith("lora_A.weight") for key in read_header(Path(exported.path)).shapes)
    assert closed.library.list() == [] and len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("kind", ["merge", "bake", "extract"])
def test_a_cancelled_tool_leaves_nothing(closed: Workspace, tmp_path: Path, kind: str) -> None:
    source = lora(tmp_path / "a.safetensors", 1)
    output = tmp_path / "out" / "x.safetensors"
    if kind == "extract":
        done(closed, "bake", {"base": "demo-sdxl", "loras": [str(source)], "output": str(tmp_path / "tuned.safetensors")})
    values = {
        "merge": {"loras": [str(source)], "output": str(output)},
        "bake": {"base": "demo-sdxl", "loras": [str(source)], "output": str(output)},
        "extract": {"tuned": str(tmp_path / "tuned.safetensors"), "base": "demo-sdxl", "output": str(output)},
    }[kind]
    job = work(closed, closed.tools.run(kind, values).id)
    events = stoppable(tools.HANDLERS[kind](job), job.requests)
    with pytest.raises(Cancelled):
        for event in events:
            assert event.kind == "loading"
            if event.done:  # within the layers
                job.folder.request("cancel")
    assert not output.parent.exists() or list(output.parent.iterdir()) == []


def test_what_cannot_work_is_refused_before_a_job_exists(closed: Workspace, tmp_path: Path) -> None:
    sdxl, flux = lora(tmp_path / "s.safetensors", 1), lora(tmp_path / "f.safetensors", 1, "flux")
    wrong: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("merge", {"loras": [str(sdxl), str(flux)]}, FormatError, "only LoRAs for the same kind of base can be merged"),
        ("merge", {"loras": [str(sdxl)], "method": "svd"}, SettingsError, "^method svd needs a rank$"),
        ("merge", {"loras": [f"{sdxl}=0"]}, InputError, "every weight is 0"),
        ("merge", {"loras": [str(sdxl)], "output": str(sdxl)}, InputError, "is a file that is read"),
        ("resize", {"source": str(sdxl)}, SettingsError, "^name a rank or an energy, one of them$"),
        ("resize", {"source": str(sdxl), "rank": 4, "energy": 0.9}, SettingsError, "one of them"),
        ("resize", {"source": "nobody", "rank": 4}, InputError, "nobody"),
        ("extract", {"tuned": "demo-flux", "base": "demo-sdxl"}, InputError, "name a base of the same family"),
        ("extract", {"tuned": "demo-sdxl", "base": "demo-sdxl"}, InputError, "tuned and base are both"),
        ("bake", {"base": "demo-sdxl", "loras": [str(flux)], "output": str(tmp_path / "x.safetensors")}, FormatError, "choose another base or LoRA"),
        ("bake", {"base": "demo-sdxl", "loras": [str(sdxl)], "output": str(tmp_path)}, InputError, "exists; name a new folder"),
    ]
    for kind, values, error, words in wrong:
        with pytest.raises(error, match=words) as told:
            closed.tools.run(kind, values)
        assert "\n" not in str(told.value)
    assert closed.jobs.list() == []


def test_a_stack_is_checked_against_itself_and_its_base(closed: Workspace, tmp_path: Path) -> None:
    one, other = lora(tmp_path / "ink.safetensors", 1), lora(tmp_path / "wash.safetensors", 2)
    events = done(closed, "check", {"loras": [str(one), f"{one}=0.5,text=0", f"{other}=0.8,input=0"], "base": "demo-sdxl"})
    result = events[-1].result if isinstance(events[-1], Finished) else {}
    assert result["verdict"] == "watch" and result["pairs"][0]["overlap"] == 1 and result["fits"]["ink"] == "1 of 1 layers fit"
    assert result["rows"][2]["layers"] == 0, "the layer lies in a block that the row turns off"
    flux = lora(tmp_path / "f.safetensors", 1, "flux")
    for values, words in (
        ({"loras": [str(one), str(flux)]}, "different kinds of base"),
        ({"loras": [str(one)], "base": "demo-flux"}, "choose another base or LoRA"),
    ):
        with pytest.raises(FormatError, match=words):
            closed.tools.run("check", values)


def test_a_stack_is_compared_at_once_without_a_job_and_only_when_something_changed(closed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = lora(tmp_path / "ink.safetensors", 1), lora(tmp_path / "wash.safetensors", 2)
    values = {"loras": [str(one), f"{other}=0.8"], "base": "demo-sdxl"}
    found = closed.tools.compare(values)
    assert found == json.loads(done(closed, "check", values)[-1].model_dump_json())["result"], "the same as the job finds"
    n = len(closed.jobs.list())
    asked: list[int] = []
    monkeypatch.setattr(closed.tools._aside, "compare", lambda *_: asked.append(1) or {"verdict": "fine"})
    assert closed.tools.compare(values) == found and not asked
    assert closed.tools.compare({**values, "loras": [str(one), f"{other}=0.7"]}) == {"verdict": "fine"} and len(asked) == 1
    other.unlink()
    lora(other, 3)
    assert closed.tools.compare(values) == {"verdict": "fine"} and len(asked) == 2, "another file under the name"
    assert len(closed.jobs.list()) == n
    with pytest.raises(FormatError, match="different kinds of base"):
        closed.tools.compare({"loras": [str(one), str(lora(tmp_path / "f.safetensors", 1, "flux"))]})


def test_what_answers_beside_the_queue_comes_back_after_it_was_killed_and_ends_by_itself(tmp_path: Path) -> None:
    from studio.config import build
    from studio.jobs.aside import Aside
    from studio.jobs.spec import CheckConfig

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 40)
    one, aside = lora(tmp_path / "ink.safetensors", 1), Aside(idle_seconds=0.3)
    config = build(CheckConfig, {"loras": ["ink"]})
    try:
        assert aside.compare(config, [one], None)["verdict"] == "fine"
        first = aside._process
        with pytest.raises(FormatError, match="broken"):
            aside.compare(config, [broken], None)
        assert first is not None and aside._process is first
        first.kill()
        first.wait()
        assert aside.compare(config, [one], None)["verdict"] == "fine"
        second = aside._process
        assert second is not None and second is not first
        second.wait(20)
    finally:
        aside.close()
