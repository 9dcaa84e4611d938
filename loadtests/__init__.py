"""Sends traffic to an endpoint and says whether its users were served well: TTFT, TPOT, ITL and SLO attainment.

Arrivals follow a schedule that does not wait for answers, and every arrival counts: one that was refused, failed or
never finished is a miss, not a gap in the data.

Knows only HTTP. Imports none of the other packages, so that it measures any OpenAI-compatible endpoint the way it
measures ours.
"""
