"""What if we had decided: a user's own past out of Prometheus, replayed under several policies, as one HTML page.

    Prometheus --> Past --> Trace --> autoscaling.simulation.run under each policy --> Study --> page, JSON

Metrics count requests and tokens and do not list them, so the trace is a reconstruction; the page says how good a one.
"""
