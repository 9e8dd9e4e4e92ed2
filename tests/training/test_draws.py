"""Claims about keyed randomness."""

import torch

from studio.training.draws import draw


def test_the_same_key_gives_the_same_draw_and_another_key_another():
    def drawn(*key):
        one = draw(*key, flip=True, caption_dropout=0.5)
        return one.level, one.mirrored, one.captionless, one.noise((2, 3)).tolist()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({str(drawn(*key)) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 0), (1, 23, 0)]}) == 6


def test_draws_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw(0, 0, 0, flip=False, caption_dropout=0).noise((4,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_draws_have_the_shares_asked_for():
    drawn = [draw(0, batch, 0, flip=True, caption_dropout=0.1) for batch in range(4000)]
    assert 0.47 < sum(d.level for d in drawn) / 4000 < 0.53
    assert 0.47 < sum(d.mirrored for d in drawn) / 4000 < 0.53
    assert 0.08 < sum(d.captionless for d in drawn) / 4000 < 0.12
    off = [draw(0, batch, 0, flip=False, caption_dropout=0) for batch in range(200)]
    assert not any(d.mirrored or d.captionless for d in off)
