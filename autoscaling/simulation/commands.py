"""`archipelago simulate`: a trace through a simulated fleet under one policy, and what came of it."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoscaling.capacity.site import site_of
from autoscaling.capacity.times import times_of
from autoscaling.observation import pools_of
from autoscaling.settings.messages import SettingsError
from autoscaling.simulation.fleet_options import (
    add_fleet_options,
    begins_s,
    initial_pools,
    max_gpus,
    rules_given,
    shapes,
    start_times_s,
)
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.progress import Watched, progress
from autoscaling.simulation.result import Result
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import TraceError, read_trace
from placement.given import (
    ERRORS,
    KV_BYTES,
    FindConfig,
    InputError,
    calibrated,
    cluster,
    model,
    named,
    slo,
)
from placement.quantities import fraction
from placement.shown import check_writable, write

FAILED = 1


def add_commands(commands: Any, find_config: FindConfig) -> None:
    """Add `simulate` to the command line; `find_config` looks a hub id up outside the catalogue."""
    command = commands.add_parser("simulate", help="run a trace of requests through a simulated fleet under a policy")
    command.add_argument("--trace", required=True, metavar="T.csv", type=Path, help="arrival_s,input_tokens,...")
    command.add_argument("--model", required=True, metavar="M", help="a hub id, a config.json, or a directory with one")
    command.add_argument("--policy", required=True, metavar="P", help=f"one of {', '.join(sorted(POLICIES))}")
    add_fleet_options(command, first="one replica")
    command.add_argument(
        "--slo", metavar="S", help="ttft=2s,tpot=50ms,percentile=p99 in one; replaces what each of them says"
    )
    command.add_argument("--truth", metavar="F", type=float, default=1.0, help="real step times over predicted ones")
    command.add_argument("--prefix-hits", metavar="S", default="0%", help="share of prompt tokens found in cache")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of start times (default 0)")
    command.add_argument("--out", metavar="R.json", type=Path, help="write everything here")
    command.add_argument("--json", action="store_true", help="print plain values instead of text")
    command.set_defaults(run=lambda arguments: _guarded(lambda: _simulate(arguments, find_config)))


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except (*ERRORS, SettingsError, TraceError) as error:
        sys.stderr.write(f"archipelago: {error}\n")
        return FAILED


def _simulate(arguments: argparse.Namespace, find_config: FindConfig) -> int:
    maker = POLICIES.get(arguments.policy)
    if maker is None:
        raise InputError(f"--policy is {arguments.policy!r}; it must be one of {', '.join(sorted(POLICIES))}.")
    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}; it must be 0 or more.")
    trace = read_trace(arguments.trace)
    scenario = _scenario(arguments, find_config)
    if arguments.out:
        check_writable(arguments.out, option="--out")
    say = progress(time.monotonic)  # noqa: TID251
    say(f"{arguments.policy}: made ready, which takes several runs where it is tuned or looks ahead")
    policy = Watched(policy=maker(scenario, trace), duration_s=trace.duration_s, say=say)
    result = run(trace, scenario, policy, arguments.seed)
    if arguments.out:
        write(arguments.out, result.text())
    sys.stdout.write(result.text() if arguments.json else f"{as_text(result)}\n")
    return 0


def _scenario(arguments: argparse.Namespace, find_config: FindConfig) -> Scenario:
    initial, rules = initial_pools(arguments), rules_given(arguments, arguments.model)
    site = site_of(
        model(arguments.model, arguments.precision, find_config),
        cluster(arguments.cluster),
        shapes=shapes(arguments, rules),
        **calibrated(arguments.calibration),
        kv_bytes_per_element=KV_BYTES[arguments.kv_cache],
    )
    if initial is not None and not set(initial) <= set(site.shapes):
        known = ", ".join(map(str, site.shapes))
        raise InputError(
            f"--initial is {arguments.initial!r}; the shapes considered are {known} (--shapes sets others)."
        )
    _split_slo(arguments)
    with named({"max_gpus": "--max-gpus", "truth": "--truth", "begins_s": "--begins"}):
        return Scenario(
            site=site,
            slo=slo(arguments),
            initial=pools_of({site.shapes[0]: 1}) if initial is None else initial,
            max_gpus=max_gpus(arguments, site),
            times=times_of(site, measured_s=start_times_s(arguments, site)),
            truth=dict.fromkeys(site.shapes, arguments.truth),
            prefix_hit_rate=fraction(arguments.prefix_hits, field="--prefix-hits"),
            rules=rules,
            begins_s=begins_s(arguments),
        )


def _split_slo(arguments: argparse.Namespace) -> None:
    """`--slo ttft=2s,tpot=50ms` as if its parts had been given one by one."""
    for part in arguments.slo.split(",") if arguments.slo else ():
        name, _, value = part.strip().partition("=")
        if name not in ("ttft", "tpot", "percentile") or not value:
            raise InputError(f"--slo: {part!r} is not accepted; give ttft=2s, tpot=50ms and percentile=p99 as needed.")
        setattr(arguments, name, value)


def as_text(result: Result) -> str:
    """A result for people."""
    actions = ", ".join(f"{count} {kind}" for kind, count in result.actions.items() if count) or "none"
    lines = (
        f"{result.policy} on {result.trace}, seed {result.seed}: {result.arrivals} requests, {result.duration_s:.0f} s",
        f"  kept the SLO   {result.attainment:.2%} of all arrivals; worst 5 minutes {result.worst_5_minutes:.2%}, "
        f"{result.minutes_kept:.1%} of minutes at 99 %",
        f"  missed it      {result.late} late, {result.refused} refused, {result.unfinished} unfinished",
        f"  GPU-hours      {result.gpu_hours:.2f}",
        f"  goodput        {result.goodput_requests_per_s:.2f} requests/s, {result.goodput_tokens_per_s:.0f} tokens/s",
        f"  TTFT           p50 {result.ttft_s.p50:.3f} s, p99 {result.ttft_s.p99:.3f} s",
        f"  TPOT           p50 {result.tpot_s.p50 * 1e3:.1f} ms, p99 {result.tpot_s.p99 * 1e3:.1f} ms",
        f"  actions        {actions}; {result.reversals} reversals; {result.moved_requests} requests moved, "
        f"{result.recomputed_tokens} tokens recomputed, longest stall {result.longest_stall_s:.1f} s",
    )
    return "\n".join(lines)
