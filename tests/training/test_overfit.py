"""The promise of early stopping, on runs that really overfit: what is given is within 2 % of the best that the whole run would have had."""

import pytest

from . import overfit


@pytest.mark.long
@pytest.mark.parametrize("base", overfit.BASES)
def test_a_run_that_overfits_is_stopped_and_gives_its_best(tmp_path, base):
    whole, stopped = (overfit.overfitted(base, tmp_path, patience) for patience in (None, overfit.PATIENCE))
    best = overfit.lowest(whole)
    assert whole.looks[-1].loss > 1.1 * best.loss, "the demonstration is none if the run does not overfit"
    assert stopped.ended < overfit.STEPS and stopped.result["stopped_early"]
    assert [(look.step, look.loss) for look in stopped.looks] == [(look.step, look.loss) for look in whole.looks[: len(stopped.looks)]]
    assert stopped.result["best_loss"] <= 1.02 * best.loss
    assert stopped.result["checkpoint"].endswith(f"{stopped.result['best_step']:06d}")
