from deployments.controller.clock import steady_clock


def test_a_wall_clock_that_is_set_changes_nothing_until_a_restart() -> None:
    wall_s, running_s = 1_000_000.0, 50.0
    now = steady_clock(lambda: wall_s, lambda: running_s)
    assert now() == 1_000_000.0
    wall_s, running_s = wall_s + 3600.0, running_s + 2.0
    assert now() == 1_000_002.0
    assert steady_clock(lambda: wall_s, lambda: running_s)() == 1_003_600.0
