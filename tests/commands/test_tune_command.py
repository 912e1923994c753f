"""`es2 harden --tune`, as a user types it."""

from __future__ import annotations

import yaml

from small import Workplace


def test_tuning_shows_the_frontier_and_trains_with_the_trial_it_picks(es2: Workplace) -> None:
    out = es2.path / "tuned"
    flags = ["harden", *es2.harden_flags(), "--layers", "2,4", "--out", out, "--tune", 2]
    done = es2(*flags)
    assert done.code == 0, done.err
    assert "Trials that no other beats" in done.out
    assert (out / "tune" / "study.log").is_file() and (out / "adapter").is_dir()
    config = yaml.safe_load((out / "config.yaml").read_text())
    found = config["defence"]["es2"]
    assert -1.5 <= found["lean"] <= 0
    assert found["kl_threshold"] == 100.0  # what the search leaves alone stays as it was asked for

    again = es2(*flags)
    assert again.code == 2 and "holds a study already" in again.complaint
    resumed = es2(*flags, "--resume")
    assert resumed.code == 0, resumed.err
    assert yaml.safe_load((out / "config.yaml").read_text()) == config


def test_less_than_a_trial_is_no_search(es2: Workplace) -> None:
    flags = ["harden", *es2.harden_flags(), "--out", es2.path / "none", "--tune", -1]
    done = es2(*flags)
    assert done.code == 2 and "--tune -1: give 1 trial or more" in done.complaint


def test_a_full_fine_tuning_cannot_be_tuned(es2: Workplace) -> None:
    flags = ["harden", *es2.harden_flags(), "--out", es2.path / "no", "--train.rank", 0]
    assert "rank above 0" in es2(*flags, "--tune", 1).complaint
