import random

import pytest

from deployments.routing import PredictedSpeed, SpeedMeter

PREDICTED = PredictedSpeed(prefill_tokens_per_s=10_000, decode_tokens_per_s=3200, full_batch=64, lone_step_s=0.01)


class Engine:
    """An engine that takes longer than predicted by two factors, and a meter that sees its steps."""

    def __init__(self, prompts: float, decodes: float) -> None:
        self._prompts, self._decodes = prompts, decodes
        self._noise = random.Random(1)
        self.now_s = 100.0
        self.meter = SpeedMeter(PREDICTED)
        self.meter.wake(self.now_s)

    def step(self, batch: int, prefilled: int = 0, *, stall_s: float = 0.0, unfinished: int = 1) -> None:
        prompts_s = self._prompts * prefilled / PREDICTED.prefill_tokens_per_s
        decodes_s = self._decodes * PREDICTED.decode_step_s(batch)
        self.now_s += (prompts_s + decodes_s) * self._noise.uniform(0.9, 1.1) + stall_s
        self.meter.observe(self.now_s, generated_tokens=batch, prefilled_tokens=prefilled, unfinished=unfinished)

    def mixed_steps(self, count: int) -> None:
        for _ in range(count):
            self.step(self._noise.randint(1, 64), self._noise.choice([0, 0, 0, 500, 2000]))

    def factors(self) -> tuple[float, float]:
        """By how much the meter says prompts and decodes take longer than predicted."""
        return (
            PREDICTED.prefill_tokens_per_s / self.meter.prefill_tokens_per_s,
            PREDICTED.decode_tokens_per_s / self.meter.decode_tokens_per_s,
        )


@pytest.mark.parametrize(("batch", "step_s"), [(0, 0.0), (1, 0.01), (22, 0.01 + 0.01 / 3), (64, 0.02), (127, 0.03)])
def test_a_step_is_predicted_to_grow_with_the_batch(batch: int, step_s: float) -> None:
    assert PREDICTED.decode_step_s(batch) == pytest.approx(step_s)


def test_a_full_batch_of_one() -> None:
    alone = PredictedSpeed(prefill_tokens_per_s=1, decode_tokens_per_s=10, full_batch=1, lone_step_s=0.1)
    assert alone.decode_step_s(1) == pytest.approx(0.1)


def test_without_a_step_the_speed_is_the_predicted_one() -> None:
    assert Engine(2.0, 0.5).factors() == (1.0, 1.0)


@pytest.mark.parametrize("prompts", [0.02, 0.7, 1.0, 1.5, 50.0])
@pytest.mark.parametrize("decodes", [0.02, 0.7, 1.0, 1.5, 50.0])
def test_the_speed_becomes_the_measured_one(prompts: float, decodes: float) -> None:
    engine = Engine(prompts, decodes)
    engine.mixed_steps(1500)
    # A part that is a thousandth of most steps cannot be told exactly, and need not be.
    assert engine.factors() == pytest.approx((prompts, decodes), rel=0.1, abs=0.05 * max(prompts, decodes))


def test_a_small_batch_tells_the_speed_of_a_full_one() -> None:
    engine = Engine(1.0, 1.3)
    for _ in range(1000):
        engine.step(batch=2)
    assert engine.meter.decode_tokens_per_s == pytest.approx(3200 / 1.3, rel=0.05)
    assert engine.meter.prefill_tokens_per_s == pytest.approx(10_000, rel=0.01)


def test_a_slower_replica_is_noticed_within_a_few_hundred_steps() -> None:
    engine = Engine(1.0, 1.0)
    engine.mixed_steps(1000)
    engine._decodes = 2.0
    engine.mixed_steps(500)
    assert engine.factors()[1] == pytest.approx(2.0, rel=0.15)


def test_a_stall_changes_little() -> None:
    engine = Engine(1.0, 1.0)
    engine.mixed_steps(300)
    before = engine.factors()
    engine.step(32, stall_s=60.0)
    assert engine.factors() == pytest.approx(before, rel=0.05)
    engine.mixed_steps(300)
    assert engine.factors() == pytest.approx((1.0, 1.0), rel=0.05)


def test_idle_time_does_not_count() -> None:
    engine = Engine(1.0, 1.0)
    for _ in range(300):
        engine.step(1, 1000)
        engine.step(1, unfinished=0)
        engine.now_s += 3600
        engine.meter.wake(engine.now_s)
    assert engine.factors() == pytest.approx((1.0, 1.0), rel=0.05)


def test_waking_a_busy_replica_changes_nothing() -> None:
    engine = Engine(1.0, 1.0)
    for _ in range(300):
        engine.meter.wake(engine.now_s + 0.009)
        engine.step(1)
    assert engine.factors()[1] == pytest.approx(1.0, rel=0.05)


def test_steps_that_compute_nothing_do_not_count() -> None:
    engine = Engine(1.0, 1.0)
    for _ in range(300):
        engine.step(0)
    assert engine.factors() == (1.0, 1.0)


@pytest.mark.parametrize("field", ["prefill_tokens_per_s", "decode_tokens_per_s", "full_batch", "lone_step_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_speed_that_is_none_is_refused(field: str, value: float) -> None:
    numbers = {"prefill_tokens_per_s": 1.0, "decode_tokens_per_s": 1.0, "full_batch": 1, "lone_step_s": 1.0}
    with pytest.raises(ValueError, match=f"{field} of a predicted speed must be above 0, not {value}"):
        PredictedSpeed(**{**numbers, field: value})  # type: ignore[arg-type]
