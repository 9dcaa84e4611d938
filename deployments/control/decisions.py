"""What the autoscaler has decided, for people to see, and what people have answered, for the autoscaler to take.

The autoscaler is another process, with a ledger of its own. It posts the end of that ledger here with every look, and
takes from here what people have asked for; only the ledger says what came of it. So all of this is in memory: after a
restart of the controller the autoscaler posts again, and who has asked sees that nobody has heard.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field, NonNegativeInt, PositiveInt

from deployments.control.values import MAX_REASON_CHARACTERS, Holder, Pools, Seconds, Wire

MOST_MODELS = 64  # with a body of at most `gate.MAX_BODY_BYTES` each
MOST_ENTRIES = 32
MOST_OPTIONS = 64
SILENT_S = 120.0  # an autoscaler that says nothing for so long has ended

Word = Annotated[str, Field(min_length=1, max_length=40)]  # such as "waiting"; later versions may have others
Sentence = Annotated[str, Field(max_length=2000)]
Share = Annotated[float, Field(ge=0, le=1)]


def _remark(text: str) -> str:
    """It is shown in terminals of other people; unlike a reason it may be missing."""
    if (text and not text.isprintable()) or len(text) > MAX_REASON_CHARACTERS:
        raise ValueError(f"give one line of at most {MAX_REASON_CHARACTERS} printable characters, or nothing")
    return text.strip()


Remark = Annotated[str, AfterValidator(_remark)]


class PriceView(Wire):
    """What an option is expected to bring and to cost; null where that is not known."""

    attainment: Share | None
    final_attainment: Share | None
    gpu_s: Seconds | None
    transition_gpu_s: Seconds | None
    transition_s: Seconds | None
    stall_s: Seconds | None


class OptionView(Wire):
    """Pools that could be the next target, and why they won or lost."""

    kind: Word
    pools: Pools
    price: PriceView
    why: Sentence = ""


class ExpectedView(Wire):
    """The demand that a decision is for; null where that is not known."""

    horizon_s: Seconds | None
    requests_per_s: Seconds | None
    mean_requests_per_s: Seconds | None
    input_tokens: Seconds | None
    output_tokens: Seconds | None


class OutcomeView(Wire):
    """What a change brought."""

    verdict: Word
    why: Sentence
    is_regretted: bool = False


class EntryView(Wire):
    """One decision of the ledger; `options` are the best ones, the best first, and `options_left_out` how many more."""

    number: PositiveInt
    at_s: Seconds = Field(description="When it was decided, in seconds since 1970.")
    state: Word
    since_s: Seconds = Field(description="Since when it is in that state.")
    by: Annotated[str, Field(max_length=200)] = ""
    why: Sentence = ""
    kind: Word
    cause: Word
    reason: Sentence
    before: Pools
    target: Pools
    expected: ExpectedView | None = None
    # FastAPI hands over lists, and nothing strict takes those for tuples.
    options: Annotated[tuple[OptionView, ...], Field(max_length=MOST_OPTIONS, strict=False)] = ()
    options_left_out: NonNegativeInt = 0
    outcome: OutcomeView | None = None


class SloView(Wire):
    """What the autoscaler holds a model to, for `percentile` of its requests; null is no limit."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    percentile: Share


class FrozenView(Wire):
    """Nothing is changed: since when, who said so, and why."""

    since_s: Seconds
    by: Annotated[str, Field(max_length=200)]
    why: Sentence = ""


class Posted(Wire):
    """All that an autoscaler says of one model."""

    holder: Holder = Field(description="Which autoscaler says it.")
    mode: Word
    slo: SloView | None = None
    frozen: FrozenView | None = None
    entries: Annotated[tuple[EntryView, ...], Field(max_length=MOST_ENTRIES, strict=False)] = ()


class ModelDecisions(Posted):
    """The same, as it is shown."""

    model: str
    age_s: Seconds = Field(description="How long ago it was said.")


class ApprovalRequest(Wire):
    """Yes or no to a proposal. `at_s` is when that was made, so that no other one of the same number is meant."""

    is_approved: bool
    at_s: Seconds
    why: Remark = ""


class Approval(ApprovalRequest):
    """An answer that the autoscaler has not taken yet."""

    model: str
    number: PositiveInt
    by: str
    given_at: AwareDatetime


class FreezeRequest(Wire):
    """That nothing shall change for now, or that changes are allowed again."""

    is_frozen: bool
    why: Remark = ""


class Freeze(FreezeRequest):
    """The same, until the autoscaler has taken it; its number is above those of all earlier ones."""

    number: PositiveInt
    by: str
    given_at: AwareDatetime


class DecisionsPage(Wire):
    """Of every model, and what waits for the autoscaler to take it."""

    models: tuple[ModelDecisions, ...]
    approvals: tuple[Approval, ...]
    freeze: Freeze | None


class ApprovalsPage(Wire):
    """Answers that wait for the autoscaler."""

    approvals: tuple[Approval, ...]


class FreezePage(Wire):
    """The request that waits for the autoscaler; null where none does."""

    freeze: Freeze | None


class Board:
    """What was said last about each model. For one event loop; what is not taken of it, it forgets with its process."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self._said: dict[str, tuple[datetime, Posted]] = {}
        self._approvals: dict[tuple[str, int], Approval] = {}
        self.freeze: Freeze | None = None

    def post(self, model: str, said: Posted) -> str | None:
        """Take what an autoscaler says; a sentence where it may not: one that acts is heard rather than an adviser."""
        known = self._said.get(model)
        if known is not None and said.mode == "advise" != known[1].mode and said.holder != known[1].holder:
            silent_s = (self.now() - known[0]).total_seconds()
            if silent_s < SILENT_S:
                return f"holder: {known[1].holder} acts for {model} and was heard {silent_s:.0f} s ago; stop it first."
        self._said.pop(model, None)
        self._said[model] = (self.now(), said)
        while len(self._said) > MOST_MODELS:
            self._said.pop(next(iter(self._said)))  # who was not heard of for longest
        self._approvals = {key: one for key, one in self._approvals.items() if self._waiting(*key, one.at_s)}
        return None

    def page(self) -> DecisionsPage:
        """Everything as it is now."""
        return DecisionsPage(models=tuple(self._shown()), approvals=tuple(self._approvals.values()), freeze=self.freeze)

    def answer(self, model: str, number: int, asked: ApprovalRequest, who: str) -> Approval:
        """Keep an answer to a proposal that `proposal` has found."""
        given = Approval(**asked.model_dump(), model=model, number=number, by=who, given_at=self.now())
        self._approvals[model, number] = given
        return given

    def proposal(self, model: str, number: int, at_s: float) -> EntryView | str:
        """The proposal that waits for an answer, or why there is none."""
        found = self._entry(model, number)
        if found is None or found.at_s != at_s:
            return f"number: the autoscaler has told of no decision {number} about {model} of that time; look again."
        if found.state != "waiting":
            return f"number: decision {number} about {model} is {found.state}, not waiting; look again."
        return found

    def ask_freeze(self, asked: FreezeRequest, who: str) -> Freeze:
        """Keep a request; it replaces one that was not taken."""
        number = max(int(self.now().timestamp() * 1000), self.freeze.number + 1 if self.freeze else 1)
        self.freeze = Freeze(**asked.model_dump(), number=number, by=who, given_at=self.now())
        return self.freeze

    def forget_freeze(self, number: int) -> None:
        """The autoscaler has taken it; a later one stays."""
        if self.freeze is not None and self.freeze.number <= number:
            self.freeze = None

    def percentiles(self) -> Mapping[str, float]:
        """The percentile of each model's SLO, where it is known."""
        return {model: said.slo.percentile for model, (_, said) in self._said.items() if said.slo}

    def _entry(self, model: str, number: int) -> EntryView | None:
        entries = self._said[model][1].entries if model in self._said else ()
        return next((entry for entry in entries if entry.number == number), None)

    def _waiting(self, model: str, number: int, at_s: float) -> bool:
        return not isinstance(self.proposal(model, number, at_s), str)

    def _shown(self) -> Iterator[ModelDecisions]:
        for model, (at, said) in sorted(self._said.items()):
            age_s = max(0.0, (self.now() - at).total_seconds())
            yield ModelDecisions(**dict(said), model=model, age_s=age_s)
