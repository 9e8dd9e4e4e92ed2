"""Captions by a model: a tiny BLIP with random weights, whose words mean nothing and are always the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.data.captioning import open_model
from studio.data.decoding import decode
from studio.errors import BaseError, InputError, RunError, SettingsError
from studio.events import Step
from tests.jobs.blip import WORDS, tiny_blip
from tests.jobs.conftest import draw_pictures
from tests.jobs.house import House

OWN = "what I wrote myself"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    found = House(tmp_path / "data")
    found.open()
    assert found.queue.try_lead()
    found.studio.sets.import_folder("Circles", draw_pictures(tmp_path / "circles", 3))
    for name in ("circle0.png", "circle1.png"):
        found.studio.sets.set_caption("Circles", name, "")
    found.studio.sets.set_caption("Circles", "circle2.png", OWN)
    yield found
    found.close()


def captions(house: House) -> dict[str, str]:
    return {item.name: item.caption for item in house.studio.sets.show("Circles").items}


def run(house: House, model: Path, **more: object) -> str:
    id = house.studio.captions.make({"images": "Circles", "model": str(model), "max_tokens": 6, **more}).id
    house.until_idle()
    return id


def test_a_model_of_a_folder_says_the_same_of_the_same_picture(model: Path, tmp_path: Path) -> None:
    picture = decode(draw_pictures(tmp_path / "circles", 1) / "circle0.png")
    captioner = open_model(str(model), "cpu", offline=True)
    said = captioner.caption(picture, max_tokens=6)
    assert said and set(said.split()) <= {word for word in WORDS if word.isalpha()}
    assert said == captioner.caption(picture, max_tokens=6) == open_model(str(model), "cpu", offline=True).caption(picture, max_tokens=6)
    assert said.startswith(captioner.caption(picture, max_tokens=1))
    assert captioner.caption(picture, "a red circle", max_tokens=6).startswith("a red circle")
    assert len(captioner.caption(picture, "a red circle", max_tokens=1).split()) <= 4


def test_only_pictures_without_a_caption_get_one_and_it_can_be_undone(house: House, model: Path) -> None:
    before = captions(house)
    id = run(house, model)
    job = house.studio.jobs.show(id)
    assert (job.state, job.kind, job.result["captioned"], job.result["kept"]) == ("finished", "caption", 2, 1), job.message
    after = captions(house)
    assert after["circle2.png"] == OWN and all(after[name] and not before[name] for name in ("circle0.png", "circle1.png"))
    assert house.studio.sets.show("Circles").captioned == 3, "the list counts them"
    steps = [event.step for event in house.studio.jobs.events(id).events if isinstance(event, Step)]
    assert steps == [1, 2]
    assert house.studio.captions.undo(id) == 2 and captions(house) == before and house.studio.sets.show("Circles").captioned == 1
    assert house.studio.captions.undo(id) == 0, "once"


def test_replacing_keeps_what_was_there_and_undoing_keeps_what_was_changed_since(house: House, model: Path) -> None:
    before = captions(house)
    id = run(house, model, replace=True)
    after = captions(house)
    assert OWN not in after.values() and all(after.values())
    house.studio.sets.set_caption("Circles", "circle0.png", "changed since")
    assert house.studio.captions.undo(id) == 2
    assert captions(house) == {**before, "circle0.png": "changed since"}


def test_it_is_cancelled_between_two_pictures_and_what_is_written_stays(house: House, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = house.studio.captions.make({"images": "Circles", "model": str(model), "replace": True, "max_tokens": 6}).id
    house.queue.tick()
    told = house.worker._tell

    def cancelling(folder, writer, event) -> None:
        told(folder, writer, event)
        if event.kind == "step":
            house.studio.jobs.cancel(id)

    monkeypatch.setattr(house.worker, "_tell", cancelling)
    house.until_idle()
    assert house.studio.jobs.show(id).state == "cancelled"
    written = [text for text in captions(house).values() if text and text != OWN]
    assert len(written) == 1 and house.studio.captions.undo(id) == 1


def test_it_can_be_run_again_and_its_set_is_in_use_meanwhile(house: House, model: Path) -> None:
    first = run(house, model)
    house.studio.captions.undo(first)
    again = house.studio.jobs.duplicate(first, {"replace": True}).id
    with pytest.raises(RunError, match="is used by the queued job"):
        house.studio.sets.remove("Circles")
    with pytest.raises(RunError, match="is queued; name a caption job that has ended"):
        house.studio.captions.undo(again)
    house.until_idle()
    assert house.studio.jobs.show(again).result["captioned"] == 3


def test_what_cannot_work_is_told_in_one_line(house: House, tmp_path: Path) -> None:
    def refused(kind: type[Exception], match: str, **asked: object) -> None:
        with pytest.raises(kind, match=match):
            house.studio.captions.make({"images": "Circles", "model": "owner/name", **asked})

    refused(InputError, "no set of your own", images="blueprint")
    refused(InputError, "neither a folder nor a hub id", model="../../etc/passwd")
    refused(InputError, "there is no config.json", model=str(tmp_path))
    refused(SettingsError, "max_tokens", max_tokens=0)
    assert house.studio.jobs.list() == []
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BaseError, match="name an image-to-text model"):
        open_model(str(tmp_path), "cpu", offline=True)
    id = house.studio.captions.make({"images": "Circles", "model": str(tmp_path)}).id
    house.until_idle()
    job = house.studio.jobs.show(id)
    assert job.state == "failed" and "cannot be used" in job.message and "\n" not in job.message
