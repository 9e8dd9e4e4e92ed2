"""Claims about buckets, crops and the epoch order."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.data.buckets import Crop, Order, count, crop, order, plan, table
from studio.errors import ImageError

sides = st.integers(64, 6000)
multiples = st.sampled_from([8, 16, 32, 64])
resolutions = st.sampled_from([64, 128, 513, 1024, 2048])


@given(sides, sides, resolutions, multiples)
def test_a_picture_is_never_enlarged_and_always_covers_its_bucket(width, height, resolution, multiple):
    c = crop((width, height), resolution**2, multiple)
    assert c.bucket[0] <= c.resized[0] <= width
    assert c.bucket[1] <= c.resized[1] <= height
    assert c.bucket[0] % multiple == 0 and c.bucket[1] % multiple == 0
    assert c.bucket[0] == c.resized[0] or c.bucket[1] == c.resized[1]
    assert 0 <= c.left <= c.resized[0] - c.bucket[0]
    assert 0 <= c.top <= c.resized[1] - c.bucket[1]
    assert abs(2 * c.left - (c.resized[0] - c.bucket[0])) <= 1


@given(sides, sides, st.sampled_from([128, 512, 1024]), multiples)
def test_a_bucket_stays_within_the_area_unless_one_row_of_blocks_is_more(width, height, resolution, multiple):
    c = crop((width, height), resolution**2, multiple)
    assert math.prod(c.bucket) <= resolution**2 or min(c.bucket) == multiple


@given(sides, sides)
def test_resizing_keeps_the_aspect_within_a_pixel(width, height):
    c = crop((width, height), 1024**2, 64)
    scale = max(c.resized[0] / width, c.resized[1] / height)
    assert abs(c.resized[0] - width * scale) <= 1 + width / height
    assert abs(c.resized[1] - height * scale) <= 1 + height / width


@given(sides, sides)
def test_no_bucket_that_fits_would_keep_more(width, height):
    area = 512**2
    c = crop((width, height), area, 64)
    if not c.small:
        for w, h in table(area, 64):
            if w <= width and h <= height:
                scale = max(w / width, h / height)
                assert w * h / (width * scale * height * scale) <= c.kept + 0.01


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1024, 1024), (1024, 1024)),
        ((4000, 4000), (1024, 1024)),
        ((1050, 1080), (1024, 1024)),  # a well-known trainer made 960x960 of this one
        ((1920, 1080), (1344, 768)),
        ((1080, 1920), (768, 1344)),
        ((1000, 1000), (960, 960)),  # own size, rounded down
        ((700, 400), (640, 384)),
    ],
)
def test_known_sizes_at_1024(size, bucket):
    assert crop(size, 1024**2, 64).bucket == bucket


def test_a_picture_below_the_area_is_marked_small():
    assert crop((1000, 1000), 1024**2, 64).small
    assert not crop((1024, 1024), 1024**2, 64).small


def test_a_side_below_the_multiple_is_refused_by_name():
    with pytest.raises(ImageError, match=r"dot\.png: 300x20 pixels"):
        plan({"dot.png": (300, 20)}, 128**2, 64)


def test_size_conditioning_follows_the_cut_and_the_mirror():
    c = Crop(original=(1920, 1080), resized=(1365, 768), left=10, top=0, bucket=(1344, 768), small=False)
    assert c.sizes() == (1080, 1920, 0, 10, 768, 1344)
    assert c.sizes(flip=True) == (1080, 1920, 0, 11, 768, 1344)


def test_buckets_are_counted():
    assert count(plan({"a": (128, 128), "b": (200, 200), "c": (400, 100)}, 128**2, 16)) == {"128x128": 2, "256x64": 1}


orders = st.builds(
    order,
    st.lists(st.sampled_from([crop((128, 128), 128**2, 16), crop((300, 100), 128**2, 16), crop((100, 300), 128**2, 16)]), min_size=1, max_size=20),
    batch_size=st.integers(1, 9),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 5),
)


@given(orders, st.integers(0, 50))
def test_an_epoch_shows_every_item_once_in_batches_of_one_bucket(o: Order, epoch):
    batches = o.epoch(epoch)
    assert len(batches) == o.batches_per_epoch
    assert sorted(item.number for batch in batches for item in batch) == list(range(o.items))
    assert set(Counter(item.picture for batch in batches for item in batch).values()) == set(o.repeats)
    for batch in batches:
        assert 1 <= len(batch) <= o.batch_size
        assert len({o.buckets[item.picture] for item in batch}) == 1


@given(orders, st.lists(st.integers(0, 200), max_size=10))
def test_a_batch_depends_on_its_number_alone(o: Order, numbers):
    fresh = Order(o.buckets, o.batch_size, o.repeats, o.seed)
    straight = [fresh.batch(n) for n in range(max(numbers, default=0) + 1)]
    assert [o.batch(n) for n in numbers] == [straight[n] for n in numbers]


def test_epochs_and_seeds_give_other_orders():
    crops = [crop((128, 128), 128**2, 16)] * 12
    one = order(crops, 4, 1, seed=1)
    assert one.epoch(0) != one.epoch(1)
    assert one.epoch(0) != order(crops, 4, 1, seed=2).epoch(0)


def test_a_batch_size_beyond_the_set_takes_the_whole_set():
    assert [len(b) for b in order([crop((128, 128), 128**2, 16)] * 3, 8, 1, seed=0).epoch(0)] == [3]


def test_epochs_become_steps():
    o = order([crop((128, 128), 128**2, 16)] * 10, 4, 1, seed=0)  # 3 batches
    assert o.steps(5, 1) == 15
    assert o.steps(5, 2) == 8
