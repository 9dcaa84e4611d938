"""What `archipelago simulate` and `whatif` ask alike: the GPUs, the SLO, the rules, and the replicas to begin with."""

import argparse
from datetime import datetime
from pathlib import Path

from autoscaling.capacity.site import Site
from autoscaling.observation import Pools, pools_of
from autoscaling.policy.rules import Rules
from autoscaling.policy.rules_given import rules_of
from autoscaling.settings.settings import read_settings
from placement import Shape, ShapeError
from placement.given import KV_BYTES, InputError
from placement.models.quantisation import PRECISIONS
from placement.promised import USUAL_SHARE
from placement.quantities import seconds


def add_fleet_options(command: argparse.ArgumentParser, *, first: str) -> None:
    """Declare them; `first` says what runs at the start without `--initial`."""
    command.add_argument("--cluster", required=True, metavar="C", help="'4x dgx-h100', or a YAML or JSON file")
    command.add_argument("--ttft", metavar="T", help="slowest first token: 2s")
    command.add_argument("--tpot", metavar="T", help="slowest further token: 50ms")
    usual = f"p{USUAL_SHARE * 100:g}"
    command.add_argument(
        "--percentile", metavar="P", default=usual, help=f"share of requests that meet it (default {usual})"
    )
    command.add_argument("--initial", metavar="POOLS", help=f"what runs at the start: tp4=2,tp8=1 (default: {first})")
    command.add_argument("--shapes", metavar="S", help="the only shapes to consider: tp4,tp8 (default: those worth it)")
    command.add_argument("--max-gpus", metavar="N", type=int, help="most GPUs at once (default: the cluster's)")
    command.add_argument("--start-time", metavar="T", help="seconds until a replica serves (default: estimated)")
    command.add_argument(
        "--settings", metavar="S.yaml", type=Path, help="keep to what the autoscaler's settings say of the model there"
    )
    command.add_argument(
        "--begins", metavar="WHEN", help="when a trace begins, for the times of day in S.yaml: 2026-11-23T08:00+01:00"
    )
    command.add_argument("--precision", choices=sorted(PRECISIONS), help="serve the weights in this format")
    command.add_argument("--kv-cache", choices=sorted(KV_BYTES), default="auto", help="format of the KV cache")
    command.add_argument("--calibration", metavar="DIR", type=Path, help="use what `calibrate --out` wrote")


def rules_given(arguments: argparse.Namespace, *names: str) -> Rules | None:
    """What the settings say of the model that has one of these names, or is read from one. Raises `SettingsError`."""
    if arguments.settings is None:
        return None
    models = read_settings(arguments.settings).models
    found = next((one for one in models if one.model in names or one.source in names), None)
    if found is None:
        there = ", ".join(one.model for one in models)
        raise InputError(f"--settings: {arguments.settings} has {there}; it must have {' or '.join(names)}.")
    return rules_of(found)


def begins_s(arguments: argparse.Namespace) -> float | None:
    """When the trace begins, in seconds since the epoch; None where that is not given."""
    if arguments.begins is None:
        return None
    try:
        begins = datetime.fromisoformat(arguments.begins)
    except ValueError:
        begins = None
    if begins is None or begins.tzinfo is None:
        raise InputError(
            f"--begins: {arguments.begins!r} is not accepted; give a date, a time and its distance from UTC, "
            "such as 2026-11-23T08:00+01:00."
        )
    return begins.timestamp()


def shapes(arguments: argparse.Namespace, rules: Rules | None) -> tuple[Shape, ...] | None:
    """The only shapes to consider, None for those that are worth it. Raises `ShapeError`."""
    if arguments.shapes:
        return tuple(map(Shape.parse, arguments.shapes.split(",")))
    return rules.shapes or None if rules else None


def initial_pools(arguments: argparse.Namespace) -> Pools | None:
    """What runs at the start, None where nothing is said. Raises `InputError` and `ShapeError`."""
    if not arguments.initial:
        return None
    pools: dict[Shape, int] = {}
    for part in arguments.initial.split(","):
        name, _, count = part.strip().partition("=")
        if not count.isdecimal() or int(count) < 1:
            raise InputError(f"--initial: {part!r} is not accepted; give a shape and how many replicas: tp4=2.")
        shape = Shape.parse(name)
        if shape in pools:
            raise ShapeError(f"--initial: {shape} is given twice.")
        pools[shape] = int(count)
    return pools_of(pools)


def max_gpus(arguments: argparse.Namespace, site: Site) -> int:
    """The most that may be held at once."""
    return site.cluster.gpus if arguments.max_gpus is None else int(arguments.max_gpus)


def start_times_s(arguments: argparse.Namespace, site: Site) -> dict[Shape, float] | None:
    """How long a replica of each shape takes to start, None for estimates. Raises `QuantityError`."""
    if arguments.start_time is None:
        return None
    return dict.fromkeys(site.shapes, seconds(arguments.start_time, field="--start-time", unit="s"))
