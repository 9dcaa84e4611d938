"""What an SLO is made of where a fleet is held to it: each reads what people write, or says what is accepted."""

from placement.quantities import QuantityError, percentile, seconds
from placement.workload import Slo, WorkloadError

# The share of requests where nobody says one: of what is served, scaled, simulated and replayed, and of load tests
# (loadtests/scenario.py). A plan's is p90 (`Slo`): of the 300 requests that it tries p99 is what the slowest three say.
USUAL_SHARE = 0.99


def promised_latency_s(value: object) -> float:
    """The slowest acceptable time, in seconds. Raises `ValueError`."""
    try:
        return seconds(value)  # 500 could be either: the unit is required
    except QuantityError as error:
        raise ValueError("give a time above 0 with its unit, such as 500ms or 2s") from error


def promised_share(value: object) -> float:
    """The share of requests that keep it. Raises `ValueError`."""
    try:
        return Slo(percentile=percentile(value)).percentile
    except (QuantityError, WorkloadError) as error:
        raise ValueError("give p50 to p99.9, or a share such as 0.95 or 95%") from error
