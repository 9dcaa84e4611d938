"""Decides *what* should run: how many replicas of which shapes, from what the running fleet reports.

    Prometheus --> Observation --> forecast --> options, each priced --> Decision --> the fleet's control API

When demand moves there are two answers, adding replicas and repartitioning the ones there are. Both are priced with the
cost model of `placement`, and the cheaper one is taken unless doing nothing is better still. A missing or stale metric
is an outcome of its own (hold), never zero. Every decision carries the options it beat.

May import `placement`, never `deployments` or `loadtests`: it states what should run, and `deployments` works out how.
Its policy, forecast and simulator are pure; only the edges read a clock or the network.
"""
