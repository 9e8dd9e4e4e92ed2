"""Several image sets in one run, from the command line to the worker and through a resume."""

import shutil


def test_further_sets_and_priors_reach_the_run_and_its_resume(hosted, pictures, tmp_path):
    for name in ("others", "kept"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(pictures / "sun-1.png", folder / "a.png")
    sets = ["--images", pictures, "--more-images", f"{tmp_path / 'others'}=2", "--regularization-images", tmp_path / "kept", "--prior-prediction"]
    small = ["--resolution", "64", "--batch-size", "8", "--epochs", "1", "--name", "sun", "--rank", "4"]
    done = hosted("train", *sets, *small, "--json")
    assert done.code == 0, done.err
    facts = next(line["facts"] for line in done.lines if line["kind"] == "started")
    assert facts["images"] == 7
    assert facts["epochs"] == 1.0
    more = hosted("train", "--resume", "sun", "--steps", "1", "--json")
    assert more.code == 0, more.err
    assert [line["step"] for line in more.lines if line["kind"] == "step"] == [2]
    gone = hosted("train", *sets[:2], "--more-images", tmp_path / "nowhere", *small)
    assert gone.code == 2 and "nowhere" in gone.err
