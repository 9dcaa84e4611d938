"""A fleet in simulation under a real policy: every request, every replica's start and drain, delayed metrics.

    Trace + Scenario + Policy --> run --> Result

The replicas are placement's (`placement.cost.simulation_replica`), so that a policy and the simulator disagree only as
far as the scenario's `truth` says. Everything is pure and decided by the seed; `commands` is the edge.
"""
