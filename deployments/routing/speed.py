"""How fast a replica is: what the planner predicts, corrected by the engine steps that were seen."""

from dataclasses import dataclass, fields

_MEMORY = 1 - 1 / 256  # what a step weighs after the next: the last few hundred count
_FAITH_STEPS = 32.0  # what was known before a step, at first the prediction, counts as much as so many more
_STALL = 4.0  # a step is taken to be at most so many times as long as expected


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedSpeed:
    """What the planner says of a replica.

    Attributes:
        prefill_tokens_per_s: prompt tokens, when it computes nothing else.
        decode_tokens_per_s: generated tokens with a full batch.
        full_batch: requests in a full batch.
        lone_step_s: seconds of a decode step with one request.
        communication_share: of a decode step with a full batch; routing does not ask, who watches does.

    Raises:
        ValueError: one of them is not above 0 (the share: below 0).
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    full_batch: int
    lone_step_s: float
    communication_share: float = 0.0

    def __post_init__(self) -> None:
        if not self.communication_share >= 0:
            raise ValueError(f"communication_share of a predicted speed must not be {self.communication_share}")
        for each in fields(self)[:4]:
            if not (value := getattr(self, each.name)) > 0:
                raise ValueError(f"{each.name} of a predicted speed must be above 0, not {value}")

    def decode_step_s(self, batch: int) -> float:
        """Seconds of a step that generates ``batch`` tokens: straight between one request and a full batch."""
        if batch < 1:
            return 0.0
        growth_s = self.full_batch / self.decode_tokens_per_s - self.lone_step_s
        return self.lone_step_s + growth_s * (batch - 1) / max(1, self.full_batch - 1)


class SpeedMeter:
    """The speed of one replica: the prediction, over the factors by which prompts and decodes really take longer.

    The factors are those that fit the latest steps best: least squares on ``measured = prompts * predicted for prompts
    + decodes * predicted for decodes``, older steps fading. So a step that computes both counts for both; and as it is
    factors that are measured, not tokens per second, a small batch tells what a full one would do.
    """

    def __init__(self, predicted: PredictedSpeed) -> None:
        self._predicted = predicted
        self._last_s: float | None = None  # None while there is nothing to compute
        # Sums over steps, each divided by its expected time: prompts', decodes' and the measured time.
        self._pp = self._pd = self._dd = self._pm = self._dm = 0.0
        self._prompts, self._decodes = 1.0, 1.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens the replica computes."""
        return self._predicted.prefill_tokens_per_s / self._prompts

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens the replica generates with a full batch."""
        return self._predicted.decode_tokens_per_s / self._decodes

    def wake(self, now_s: float) -> None:
        """Tell that the replica, if it had nothing to do, has now: so its first step counts too."""
        if self._last_s is None:
            self._last_s = now_s

    def observe(self, now_s: float, *, generated_tokens: int, prefilled_tokens: int, unfinished: int) -> None:
        """Learn from one engine step that has just ended; to be told of every step, whoever owns its requests.

        Args:
            now_s: of any clock that does not jump.
            generated_tokens: of the step, by all requests.
            prefilled_tokens: prompt tokens computed in the step.
            unfinished: requests the replica still has; without any it idles, and the time until the next step does not
                count.
        """
        began_s, self._last_s = self._last_s, now_s if unfinished else None
        prompts_s = prefilled_tokens / self._predicted.prefill_tokens_per_s
        decodes_s = self._predicted.decode_step_s(generated_tokens)
        if began_s is None or prompts_s + decodes_s == 0:
            return
        self._learn(prompts_s, decodes_s, now_s - began_s)

    def _learn(self, prompts_s: float, decodes_s: float, measured_s: float) -> None:
        # A stall (a compilation, a hung link) is no speed; but where the prediction is far off, every step looks like
        # one, so it is cut and not ignored.
        measured_s = min(measured_s, _STALL * (self._prompts * prompts_s + self._decodes * decodes_s))
        expected_s = prompts_s + decodes_s
        p, d, m = prompts_s / expected_s, decodes_s / expected_s, measured_s / expected_s
        self._pp = self._pp * _MEMORY + p * p
        self._pd = self._pd * _MEMORY + p * d
        self._dd = self._dd * _MEMORY + d * d
        self._pm = self._pm * _MEMORY + p * m
        self._dm = self._dm * _MEMORY + d * m
        # With the factors known so far as further measurements: a part that was not seen lately keeps its factor.
        pp, dd = self._pp + _FAITH_STEPS, self._dd + _FAITH_STEPS
        pm, dm = self._pm + _FAITH_STEPS * self._prompts, self._dm + _FAITH_STEPS * self._decodes
        determinant = pp * dd - self._pd**2
        least = 1 / 1024  # steps that disagree can push one factor below 0
        self._prompts = max(least, (pm * dd - dm * self._pd) / determinant)
        self._decodes = max(least, (dm * pp - pm * self._pd) / determinant)
