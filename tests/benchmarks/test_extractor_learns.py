"""`benchmarks/extractor_learns.py`: what its figures are made of, and that what is done isn't done again."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
import extractor_learns
from extractor_learns import ARMS, BASE, Size, auc, closed, interval, main, summary

FIGURES = (
    "recall@1", "recall@k", "answer_logp", "tokens_read", "tokens_stored",
    "retrieve_text", "retrieve_boilerplate", "read_text", "read_boilerplate",
)  # fmt: skip


def cell(value: float, hard: float | None = None) -> dict[str, dict[str, float]]:
    return {"soft": dict.fromkeys(FIGURES, value), "hard": dict.fromkeys(FIGURES, value if hard is None else hard)}


def test_the_distance_is_that_between_what_differs_in_print_alone() -> None:
    """(arm − printed) / (clean − printed); with a retriever that learns, between those that learn on either print."""
    cells = {"printed": cell(0.5), "clean": cell(0.7), "extractor": cell(0.6, 0.65)}
    cells |= {"retriever": cell(0.6), "retriever-clean": cell(0.8), "then": cell(0.75)}
    assert closed(cells, "extractor", "soft", "recall@1") == pytest.approx(0.5)
    assert closed(cells, "extractor", "hard", "recall@1") == pytest.approx(0.75)
    assert closed(cells, "then", "soft", "recall@1") == pytest.approx(0.75)
    assert np.isnan(closed(cells | {"clean": cell(0.4)}, "extractor", "soft", "recall@1"))
    assert np.isnan(closed({"extractor": cell(0.6)}, "extractor", "soft", "recall@1"))
    assert set(BASE) <= set(ARMS)


def test_an_interval_is_students() -> None:
    """Of three seeds t is 4.303; one seed has none, and one that has no distance is left out."""
    values = [0.2, 0.4, 0.9]
    half = 4.303 * np.std(values, ddof=1) / 3**0.5
    assert interval([*values, float("nan")]) == pytest.approx([0.5, 0.5 - half, 0.5 + half])
    assert np.isnan(interval([0.2])[1:]).all()


def test_the_summary_has_what_the_benchmark_is_for() -> None:
    """Soft and hard, their difference, and the untrained arm and fixed chunks that an arm is measured against."""
    seeds = {
        seed: {
            "printed": cell(0.5), "clean": cell(0.7), "fixed-128": cell(0.25), "extractor": cell(0.6 + seed, 0.5 + seed)
        }
        for seed in (0.0, 0.01, 0.02)
    }  # fmt: skip
    found = summary(seeds)
    assert found["extractor"]["recall@1"]["gap"] == pytest.approx([0.1] * 3)
    soft = found["extractor soft"]
    assert soft["distance_closed"]["recall@1"][0] == pytest.approx(0.55)
    assert soft["less"]["fixed-128"]["recall@1"][0] == pytest.approx(0.36)
    assert soft["tokens_read_ratio"][0] == pytest.approx(1.22)
    assert {"gate_boilerplate", "gate_text", "tokens_stored_ratio"} <= soft.keys()
    for name in ("gate_boilerplate", "gate_text", "distance_closed", "tokens_read_ratio"):  # of the extractor alone
        assert found[name] == {mode: found[f"extractor {mode}"][name] for mode in ("soft", "hard")}
    assert found["distance_closed"]["soft"] != found["distance_closed"]["hard"]
    assert "distance_closed" not in summary({0: {"printed": cell(0.5)}})


def test_the_area_is_how_often_text_has_the_larger_logit() -> None:
    logits, text = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    assert auc(logits, text) == pytest.approx((2 + 1.5) / 4)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells stay, under a name that other settings don't have."""
    ran = []
    monkeypatch.setattr(extractor_learns, "prepare", lambda *_: {"form": None})
    monkeypatch.setattr(extractor_learns, "teach", lambda *_: tmp_path)
    monkeypatch.setattr(extractor_learns, "run", lambda arm, seed, *_: ran.append((arm, seed)) or cell(0.5))
    given = ["x", "--out", str(tmp_path), "--arms", "printed", "clean", "--json", str(tmp_path / "x.json")]
    for more, expected in (
        (["--seeds", "0"], [("printed", 0), ("clean", 0)]),
        (["--seeds", "0", "1"], [("printed", 1), ("clean", 1)]),
        (["--seeds", "1", "--set", "k=3"], [("printed", 1), ("clean", 1)]),
    ):
        ran.clear()
        monkeypatch.setattr(sys, "argv", [*given, *more])
        main()
        assert ran == expected
    assert json.loads((tmp_path / "x.json").read_text())["size"]["k"] == 3
    assert Size().k == 2


def test_an_extractor_that_is_told_keeps_text_and_drops_all_else() -> None:
    from extractor_learns import Labelled

    keep = torch.tensor([True, False, True])
    made = Labelled(extractor_learns.Size().candidates, keep).eval()
    c = made.config
    with torch.no_grad():
        out = made(torch.zeros(3, 25), torch.zeros(3, c.text_dim), torch.zeros(3, dtype=torch.long))
    assert (made.log_gates(out.read, "hard") == 0).tolist() == keep.tolist()


def test_reprinted_articles_are_averaged_before_the_share_is_taken() -> None:
    """Two prints with distances of .1 and .3: shares of single prints would be .5 and 0, of their means .125."""
    import reprinted

    def one(printed: float, clean: float, hard: float) -> dict[str, dict[str, float]]:
        recall = dict.fromkeys(reprinted.ARMS, clean) | {"printed": printed, "hard": hard}
        rest = {"read_boilerplate_dropped": 0.7, "read_text_dropped": 0.03}
        return {
            arm: {"recall@1": value, "tokens_stored": 80.0 if arm == "hard" else 100.0} | rest
            for arm, value in recall.items()
        }

    found = reprinted.summary({0: [one(0.5, 0.6, 0.55), one(0.4, 0.7, 0.4)], 1: [one(0.5, 0.6, 0.6)]})
    assert found["distance_closed"]["hard"]["by seed"] == pytest.approx([0.125, 1.0])
    assert found["distance_closed"]["soft"]["mean"][0] == pytest.approx(1.0)
    assert found["tokens_stored_ratio"]["by seed"] == pytest.approx([0.8, 0.8])
    assert found["prints"] == {0: 2, 1: 1}
