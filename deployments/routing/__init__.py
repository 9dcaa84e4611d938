"""The router of an ingress: which replica gets a request, or that it is refused early. Pure but for two memories.

prompt -> block_hashes -> PrefixIndex.cached_tokens ─┐
engine steps ----------> SpeedMeter -> Candidate ----┴-> admit -> Choice (then PrefixIndex.note) or Refusal
"""

from deployments.routing.admission import Limits, Refusal, admit
from deployments.routing.choosing import Arrival, Candidate, Choice, answer_tokens, choose
from deployments.routing.prefixes import PrefixIndex, block_hashes
from deployments.routing.speed import PredictedSpeed, SpeedMeter

__all__ = [
    "Arrival",
    "Candidate",
    "Choice",
    "Limits",
    "PredictedSpeed",
    "PrefixIndex",
    "Refusal",
    "SpeedMeter",
    "admit",
    "answer_tokens",
    "block_hashes",
    "choose",
]
