"""Claims about noise: what each setting adds, that it is keyed, and that the plain draw stays what it was."""

import pytest
import torch

from studio.config.training.objective import Objective
from studio.training.draws import draw
from studio.training.noise import extra_noise, pyramid, target_noise

SHAPE = (4, 64, 64)


def drawn(batch=0):
    return draw(1, batch, 0, flip=False, caption_dropout=0)


def test_without_settings_the_noise_is_the_plain_draw():
    assert torch.equal(target_noise(drawn(), SHAPE, Objective()), drawn().noise(SHAPE))
    assert extra_noise(drawn(), SHAPE, Objective()) is None


@pytest.mark.parametrize("values", [{"noise_offset": 0.1}, {"pyramid_noise": 6}, {"noise_offset": 0.1, "pyramid_noise": 6}])
def test_noise_is_keyed_by_its_item(values):
    chosen = Objective(**values)
    assert torch.equal(target_noise(drawn(), SHAPE, chosen), target_noise(drawn(), SHAPE, chosen))
    assert not torch.equal(target_noise(drawn(), SHAPE, chosen), target_noise(drawn(1), SHAPE, chosen))


def test_an_offset_shifts_each_channel_as_a_whole_by_its_share():
    shifts = torch.stack([target_noise(drawn(i), SHAPE, Objective(noise_offset=0.1)) - drawn(i).noise(SHAPE) for i in range(200)])
    assert shifts.std(dim=(2, 3)).max() < 1e-6
    assert shifts[:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.1) and shifts[:, :, 0, 0].mean().abs() < 0.02


def test_pyramid_noise_keeps_its_spread_and_gains_at_low_frequencies():
    def coarse(noise):
        return torch.nn.functional.avg_pool2d(noise, 16).std()

    plain = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    made = pyramid(plain, 6, 0.5, torch.Generator().manual_seed(1))
    assert made.std().item() == pytest.approx(1.0, abs=1e-5)
    assert coarse(made) > 2 * coarse(plain)
    weak = pyramid(plain, 6, 1e-6, torch.Generator().manual_seed(1))
    torch.testing.assert_close(weak, plain / plain.std(), atol=1e-4, rtol=0)


def test_perturbation_has_its_share_and_is_not_the_noise():
    extra = extra_noise(drawn(), SHAPE, Objective(input_perturbation=0.1))
    assert extra is not None and extra.std().item() == pytest.approx(0.1, rel=0.05)
    assert torch.corrcoef(torch.stack([extra.flatten(), drawn().noise(SHAPE).flatten()]))[0, 1].abs() < 0.03


def test_a_choice_is_even_keyed_and_costs_no_draw_where_there_is_none():
    picks = [drawn(i).choice("caption", 3) for i in range(600)]
    assert all(160 < picks.count(n) < 240 for n in range(3))
    assert picks[:50] == [drawn(i).choice("caption", 3) for i in range(50)]
    assert drawn().choice("caption", 1) == 0
