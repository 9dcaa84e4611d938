"""How accuracy is measured, on rows whose answer is known, and what it is on public measurements."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from benchmarks.planner_accuracy import PEER, PEER_CHOICES, choice_line, report
from hypothesis import given
from hypothesis import strategies as st
from measured_data import measured

from placement.calibration import accuracy
from placement.calibration import fit as calibration
from placement.calibration.accuracy import AccuracyError, Errors, cross_validate, errors, folds_of
from placement.calibration.choices import at_face_value, by_chance, errors_spread, slo_choice, slo_choice_by_chance
from placement.calibration.fit import Prediction
from placement.calibration.ladders import Ladder, Ratio
from placement.calibration.rows import Case, Row, case_of, read_rows
from placement.cost.constants import priors, shipped
from placement.planning.chance import MEASURED, UNMEASURED, Spread
from placement.shape import Shape


def times(ttft_ms: Sequence[float], tpot_ms: Sequence[float]) -> Prediction:
    return Prediction(ttft_ms=np.array(ttft_ms, dtype=float), tpot_ms=np.array(tpot_ms, dtype=float))


def row(ttft_ms: float, tpot_ms: float, *, tp: int = 1, clients: float = 1, tokens: float = 101) -> Row:
    return Row(
        id=f"tp{tp}-{clients:g}",
        engine="vllm",
        version="",
        model_id="meta-llama/Llama-3.1-8B",
        gpu="h100_sxm",
        precision="fp8",
        input_tokens=1000,
        output_tokens=tokens,
        clients=clients,
        shape=Shape(tp=tp),
        client="",
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
    )


@cache
def own_predictions() -> tuple[Case, ...]:
    """Three GPUs, two engines, two layouts and four loads, measured to be just what the formulas say before any fit."""
    prior = priors(shipped())
    rows = [
        replace(row(1, 1, tp=tp, clients=clients), gpu=gpu, engine=engine, id=f"{gpu} {engine} {tp} {clients}")
        for gpu in ("h100_sxm", "h200_sxm", "b200_sxm")
        for engine in ("vllm", "trtllm")
        for tp in (1, 2)
        for clients in (1, 4, 16, 64)
    ]
    cases = [case_of(each, prior) for each in rows]
    found = calibration.predict(calibration.stacked(cases), prior)
    pairs = zip(cases, found.ttft_ms, found.tpot_ms, strict=True)
    return tuple(
        replace(case, row=replace(case.row, ttft_ms=float(ttft), tpot_ms=float(tpot))) for case, ttft, tpot in pairs
    )


def test_errors_of_a_hand_made_table() -> None:
    found = errors([row(100, 10), row(100, 10), row(100, 10)], times([100, 150, 50], [10, 10, 40]))
    assert found.rows == 3
    assert (found.ttft.mean, found.ttft.median) == pytest.approx((1 / 3, 0.5))
    assert found.ttft.bias == pytest.approx((1.5 * 0.5) ** (1 / 3) - 1)
    assert (found.tpot.mean, found.tpot.median) == pytest.approx((1, 0))
    # 100 ms + 100 * 10 ms for an answer, against 100 + 1000, 150 + 1000 and 50 + 4000.
    assert found.tokens_per_s.mean == pytest.approx((0 + 50 / 1150 + 2950 / 4050) / 3)


def test_tokens_per_s_count_all_clients_and_share_over_gpus() -> None:
    found = accuracy.tokens_per_s([row(100, 10, tp=2, clients=8)], times([100], [10]))
    assert found == pytest.approx(8 * 101 / 1.1 / 2)


def test_errors_by_label_cover_every_row_once() -> None:
    rows = [row(100, 10, tp=tp) for tp in (1, 2, 1)]
    found = accuracy.errors_by(rows, times([100, 200, 100], [10, 10, 10]), lambda each: str(each.shape))
    assert {name: (each.rows, each.ttft.mean) for name, each in found.items()} == {"tp1": (2, 0), "tp2": (1, 1)}


@pytest.mark.parametrize("by", ["curve", "group", "gpu"])
def test_a_models_own_predictions_have_no_error_out_of_fold(by: str) -> None:
    cases = own_predictions()
    found = errors([case.row for case in cases], cross_validate(cases, shipped(), by=by, folds=3))
    assert max(found.tpot.mean, found.ttft.mean, found.tokens_per_s.mean) < 1e-6


def test_what_is_held_out_never_reaches_its_own_prediction() -> None:
    """Three times slower measurements of one group change what is predicted for others, not for it."""
    cases = own_predictions()
    odd = [case.row.gpu == "b200_sxm" and case.row.engine == "vllm" for case in cases]
    spoilt = [
        replace(case, row=replace(case.row, ttft_ms=3 * case.row.ttft_ms, tpot_ms=3 * case.row.tpot_ms))
        if bad
        else case
        for case, bad in zip(cases, odd, strict=True)
    ]
    before, after = (cross_validate(each, shipped(), by="group", folds=6) for each in (cases, spoilt))
    assert after.tpot_ms[odd] == pytest.approx(before.tpot_ms[odd], rel=1e-9)
    assert after.ttft_ms[odd] == pytest.approx(before.ttft_ms[odd], rel=1e-9)
    assert np.abs(after.tpot_ms / before.tpot_ms - 1).max() > 0.01


def test_fitted_constants_do_not_reach_the_folds() -> None:
    cases = own_predictions()
    keys = {("layer_overhead_us", "vllm"): 300.0}
    found = [cross_validate(cases, each, folds=2) for each in (shipped(), shipped().with_values(keys))]
    assert found[0].tpot_ms == pytest.approx(found[1].tpot_ms, rel=1e-12)


@given(
    labels=st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=40).filter(lambda all_: len(set(all_)) > 1),
    folds=st.integers(2, 9),
)
def test_folds_hold_out_every_case_once_and_labels_whole(labels: list[str], folds: int) -> None:
    found = folds_of(labels, folds)
    assert np.sum(found, axis=0).tolist() == [1] * len(labels)
    for held in found:
        inside = {label for label, out in zip(labels, held, strict=True) if out}
        outside = {label for label, out in zip(labels, held, strict=True) if not out}
        assert inside
        assert not inside & outside


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: errors([], times([], [])), "no rows"),
        (lambda: errors([row(0, 10)], times([1], [1])), "row tp1-1: silicon_ttft_ms and silicon_tpot_ms"),
        (lambda: folds_of(["a", "a"], 5), "folds is 5 for 1 labels"),
        (lambda: cross_validate(own_predictions(), shipped(), folds=1), "folds is 1"),
    ],
)
def test_rows_without_an_answer_are_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(AccuracyError, match=message):
        act()


def test_runs_with_unrecorded_settings_are_trusted_little() -> None:
    rows = [row(1, 1), replace(row(1, 1), model_id="nvidia/Llama-3.1-8B-Instruct-FP8"), replace(row(1, 1), gpu="gb200")]
    assert accuracy.trust(rows).tolist() == [1, 0.1, 0.1]


# Measured TPOT 8, 12 and 18 ms for 1, 4 and 16 clients, TTFT 100, 400 and 2000 ms: tokens/s rise from each to the next.
SCENARIO = [row(100, 8, clients=1), row(400, 12, clients=4), row(2000, 18, clients=16)]


@pytest.mark.parametrize(
    ("tpot_ms", "violations", "regret", "best"),
    [
        pytest.param([8, 12, 18], 0, 0, 1, id="perfect"),
        # Limits 10, 15, 20, 30, 50: the second is taken for 10, the third for 15, which they break; then the third.
        pytest.param([6, 9, 13], 2 / 5, 2 / 5, 3 / 5, id="too-fast"),
        # Never within 10, where the first comes closest; the first for 15, the second for 20; then the third.
        pytest.param([11, 16, 24], 0, 2 / 5, 3 / 5, id="too-slow"),
    ],
)
def test_slo_choice_arithmetic(tpot_ms: list[float], violations: float, regret: float, best: float) -> None:
    found = slo_choice(SCENARIO, times([100, 400, 2000], tpot_ms))
    assert found.decisions == 5
    assert found.violations == pytest.approx(violations)
    assert found.best == pytest.approx(best)
    if violations or not regret:
        assert found.regret == pytest.approx(regret)
    else:  # what the better layouts would have written, for 15 and for 20 ms
        rates = [clients / (ttft + 100 * tpot) for clients, ttft, tpot in ((1, 100, 8), (4, 400, 12), (16, 2000, 18))]
        assert found.regret == pytest.approx((2 - rates[0] / rates[1] - rates[1] / rates[2]) / 5)


def test_slo_choice_counts_only_limits_that_something_keeps() -> None:
    perfect = times([100, 400, 2000], [8, 12, 18])
    assert slo_choice(SCENARIO[1:], times([400, 2000], [12, 18])).decisions == 4
    # With TTFT <= 1 s the third never is allowed: the second is best from 15 ms on.
    assert slo_choice(SCENARIO, perfect, ttft_ms=1000).best == 1
    assert slo_choice(SCENARIO, times([100, 400, 900], [8, 12, 18]), ttft_ms=1000).violations == pytest.approx(3 / 5)


def test_the_best_of_many_inexact_predictions_breaks_its_limit_more_rarely_by_chance() -> None:
    """Right on average is not enough: of many candidates the one that is predicted too fast is taken."""
    rows = [
        replace(row(100, 4 + clients, clients=clients), input_tokens=1000 + index)
        for index in range(10)
        for clients in range(1, 60)
    ]
    off = np.random.default_rng(1).lognormal(0, 0.1, len(rows))
    found = times([100] * len(rows), off * [each.tpot_ms for each in rows])
    bold, careful = slo_choice(rows, found), slo_choice_by_chance(rows, found)
    assert careful.violations < bold.violations / 2
    assert careful.regret < bold.regret / 2


def test_the_surer_of_two_candidates_is_chosen_where_errors_are_large() -> None:
    rows = [row(100, 10 * off, clients=clients) for clients, off in enumerate((0.8, 0.9, 1, 1.1, 1.25), start=1)]
    ttft, tpot, promised = np.array([0.1, 0.1]), np.array([0.95, 0.7]), np.array([1.3, 1.0])
    assert at_face_value(promised, ttft, tpot) == 0
    for predicted_ms, chosen in (([each.tpot_ms for each in rows], 0), ([10] * 5, 1)):
        rule = by_chance(errors_spread(rows, times([100] * 5, predicted_ms)))
        assert rule(promised, ttft, tpot) == chosen
        assert rule(promised, ttft, tpot * 3) == 1  # none within the limit: the closest


def test_errors_of_a_scenario_never_choose_for_it() -> None:
    """One scenario is far off, the others are right: it is chosen for as if it were right."""
    rows = [replace(each, input_tokens=1000 + index) for index in range(6) for each in SCENARIO]
    odd = np.array([each.input_tokens == 1000 for each in rows])
    right = np.array([each.tpot_ms for each in rows])
    found = slo_choice_by_chance(
        rows, times([each.ttft_ms for each in rows], np.where(odd, right / 1.4, right)), folds=6
    )
    assert found.violations == pytest.approx(2 / 30)


def test_the_report_has_every_part() -> None:
    cases = own_predictions()
    rows = [case.row for case in cases]
    pair = Ladder(
        model="?",
        hardware="H999",
        precision="fp8",
        input_tokens=1,
        output_tokens=1,
        attention_dp=False,
        tokens_per_s={},
    )
    found = report(rows, {"group": accuracy.measured(rows)}, [Ratio(ladder=pair, measured=1.5, predicted=None)])
    for words in (
        "aiconfigurator",
        "out of fold by group",
        "h200_sxm",
        "as `plan` chooses",
        "spread of log(measured / predicted) by group",
        "H999",
    ):
        assert words in found
    text = accuracy.as_text({"before": errors(rows, accuracy.measured(rows))})
    assert "0.0% / 0.0%" in text
    assert accuracy.as_json({"before": errors(rows, accuracy.measured(rows))})["before"]["rows"] == len(rows)


def public_rows() -> list[Row]:
    with measured("serving_silicon_dev.csv").open(encoding="utf-8", newline="") as file:
        return read_rows(csv.DictReader(file))


def test_the_peers_figures_are_computed_as_ours_are() -> None:
    with measured("aiconfigurator_0.12.0_predictions_dev.csv").open(encoding="utf-8", newline="") as file:
        answers = [line for line in csv.DictReader(file) if line["pred_tpot_ms"] and line["pred_ttft_ms"]]
    rows = public_rows()
    for mode, text in zip(("silicon", "hybrid"), PEER, strict=True):
        of_mode = {line["id"]: line for line in answers if line["database_mode"] == mode}
        known = [each for each in rows if each.id in of_mode]
        found = times(*([float(of_mode[each.id][f"pred_{name}_ms"]) for each in known] for name in ("ttft", "tpot")))
        assert accuracy.line("", errors(known, found))[34:] == text[34:]
        if mode == "silicon":
            for limit_ms, choice in zip((np.inf, 1000.0), PEER_CHOICES, strict=True):
                assert choice_line("", slo_choice(known, found, ttft_ms=limit_ms))[34:] == choice[34:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "tpot", "ttft", "rate", "regret", "spread"),
    [
        ("curve", (0.078, 0.038), (0.275, 0.129), (0.09, 0.039), (0.12, 0.13), MEASURED),
        ("group", (0.166, 0.093), (0.426, 0.252), (0.176, 0.09), (0.175, 0.215), UNMEASURED),
    ],
)
def test_public_points_out_of_fold(
    by: str,
    tpot: tuple[float, float],
    ttft: tuple[float, float],
    rate: tuple[float, float],
    regret: tuple[float, float],
    spread: Spread,
) -> None:
    """Mean and median errors; regrets without and with a TTFT limit of 1 s. Bars are a tenth above what was found.

    The spreads that `plan` weighs its chances with are those of these errors.
    """
    rows = public_rows()
    found = cross_validate([case_of(each, shipped()) for each in rows], shipped(), by=by)
    assert_within(errors(rows, found), tpot, ttft, rate)
    off = errors_spread(rows, found)
    assert (off.tpot, off.ttft) == pytest.approx((spread.tpot, spread.ttft), abs=0.002)
    for limit_ms, bar in zip((np.inf, 1000.0), regret, strict=True):
        choice = slo_choice_by_chance(rows, found, ttft_ms=limit_ms)
        assert choice.violations <= 0.08
        assert choice.regret <= bar


def assert_within(found: Errors, *bars: tuple[float, float]) -> None:
    for each, (mean, median) in zip((found.tpot, found.ttft, found.tokens_per_s), bars, strict=True):
        assert each.mean <= mean
        assert each.median <= median
