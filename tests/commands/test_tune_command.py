"""`es2 harden --tune`, as a user types it."""

from __future__ import annotations

from pathlib import Path

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

    other = es2(*flags, "--resume", "--settings", "kl_threshold=50.0")
    assert other.code == 2 and "was run with other settings" in other.complaint


def test_when_the_frontier_has_been_seen_another_trial_is_picked(es2: Workplace) -> None:
    out = es2.path / "tuned"
    flags = ["harden", *es2.harden_flags(), "--layers", "2,4", "--out", out, "--tune", 2]
    assert es2(*flags).code == 0
    first = (out / "config.yaml").read_text()
    trained = set()
    for trial in (0, 1):
        picked = es2(*flags, "--resume", "--pick", trial)
        assert picked.code == 0, picked.err
        folder = Path(picked.out.splitlines()[-1])
        assert folder.is_dir()
        trained.add(folder.parent)
    (other,) = trained - {out}
    assert other.parent == out and other.name.startswith("trial-")
    assert (other / "config.yaml").read_text() != first == (out / "config.yaml").read_text()


def test_less_than_a_trial_is_no_search(es2: Workplace) -> None:
    flags = ["harden", *es2.harden_flags(), "--out", es2.path / "none", "--tune", -1]
    done = es2(*flags)
    assert done.code == 2 and "--tune -1: give 1 trial or more" in done.complaint


def test_a_full_fine_tuning_cannot_be_tuned(es2: Workplace) -> None:
    flags = ["harden", *es2.harden_flags(), "--out", es2.path / "no", "--train.rank", 0]
    assert "rank above 0" in es2(*flags, "--tune", 1).complaint
