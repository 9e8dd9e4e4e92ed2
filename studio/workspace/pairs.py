"""Pairs of generated pictures of which one is better, kept in an image set that preference training learns from."""

from studio.data import pairs
from studio.errors import InputError, NotFound
from studio.workspace.gallery import Gallery
from studio.workspace.records import Record, SetRecord
from studio.workspace.sets import Sets

NAME = "preferences"  # of the set, unless another is named


class PairRecord(Record):
    """The set that a pair went into, and how many it holds now."""

    set: SetRecord
    pairs: int


class Pairs:
    """Use cases around pairs."""

    def __init__(self, sets: Sets, gallery: Gallery) -> None:
        self._sets, self._gallery = sets, gallery

    def add(self, better: str, worse: str, set: str = NAME) -> PairRecord:
        """Copy two pictures of the gallery into the set, made if it is new, and note which is better. Raises InputError if they are no pair."""
        one, other = self._gallery.show(better), self._gallery.show(worse)
        if one.id == other.id:
            raise InputError("a picture cannot be better than itself; choose two")
        if (one.width, one.height) != (other.width, other.height):
            raise InputError(f"the pictures are {one.width}x{one.height} and {other.width}x{other.height}; a pair must have one size: draw them alike")
        try:
            found = self._sets.show(set)
        except NotFound:
            found = self._sets.create(set)
        files = [(f"{record.id}.png", self._gallery.path(record.id)) for record in (one, other)]
        taken = self._sets.add_files(found.id, files)
        if taken.rejected:
            raise InputError(f"{taken.rejected[0].name}: {taken.rejected[0].message}")
        stored = [self._stored(found.id, name) for name, _ in files]
        for name, record in zip(stored, (one, other), strict=True):
            self._sets.set_caption(found.id, name, record.prompt)
        n = pairs.add(self._sets.resolve(found.id).folder, stored[0], stored[1])
        return PairRecord(set=self._sets.show(found.id), pairs=n)

    def _stored(self, set: str, name: str) -> str:
        names = {picture.name for picture in self._sets.show(set).items}
        if name not in names:
            raise InputError("the two pictures are the same, point for point, as others of the set; there is nothing to prefer")
        return name
