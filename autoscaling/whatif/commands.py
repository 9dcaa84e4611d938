"""`archipelago whatif`: the user's own history, or a trace, under several policies, as an HTML page."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoscaling.capacity.site import Site, site_of
from autoscaling.capacity.times import times_of
from autoscaling.observation import gpus_of, pools_of, spelled
from autoscaling.observing.prometheus import Prometheus
from autoscaling.policy.rules import Rules
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
from autoscaling.simulation.oracles.scripted import Steps
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.progress import progress
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import TraceError, read_trace
from autoscaling.whatif.from_prometheus import read_past
from autoscaling.whatif.past import Past, PastError
from autoscaling.whatif.reconstruction import fidelity, reconstructed
from autoscaling.whatif.replay import DEFAULT, replayed
from autoscaling.whatif.report_html import page
from autoscaling.whatif.study import Study
from autoscaling.whatif.verdict import verdict
from placement import Shape
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
from placement.quantities import QuantityError, fraction, seconds
from placement.shown import check_writable, write

FAILED = 1
_DAY_S = 86_400.0
_PATIENCE_S = 60.0  # for one answer of Prometheus: two weeks of histograms are much to gather
_EXAMPLES = """\
examples:
  archipelago whatif --prometheus http://prometheus:9090 --model llama --source meta-llama/Llama-3.1-70B \\
      --cluster '4x dgx-h100' --ttft 2s --tpot 50ms --out report.html
  archipelago whatif --trace day.csv --source meta-llama/Llama-3.1-70B --cluster '4x dgx-h100' --initial tp4=2 \\
      --ttft 2s --tpot 50ms --policies archipelago,static,dynamo --out report.html --json
A day at 20 requests/s takes about a minute for each run; ray-serve and its like are tuned, which takes several runs.
"""


def add_commands(commands: Any, find_config: FindConfig, now: Callable[[], float] = time.time) -> None:  # noqa: TID251
    """Add `whatif` to the command line; `find_config` looks a hub id up outside the catalogue, `now` is the clock."""
    command = commands.add_parser(
        "whatif",
        help="replay your own history under several policies: GPU-hours and SLO attainment of each, as one page",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    history = command.add_mutually_exclusive_group(required=True)
    history.add_argument("--prometheus", metavar="URL", help="where the history is: http://prometheus:9090")
    history.add_argument("--trace", metavar="T.csv", type=Path, help="replay this instead: arrival_s,input_tokens,...")
    command.add_argument("--model", metavar="NAME", help="as the series call it (default: what --source says)")
    command.add_argument("--since", metavar="T", default="24h", help="how far back: 90min, 24h, 14d (default 24h)")
    command.add_argument("--scrape-interval", metavar="T", default="15s", help="of that Prometheus (default 15s)")
    command.add_argument("--token-file", metavar="FILE", type=Path, help="a file with that Prometheus's bearer token")
    command.add_argument("--user", metavar="NAME", help="for basic authentication instead of a token")
    command.add_argument("--password-file", metavar="FILE", type=Path, help="a file with the password of --user")
    command.add_argument("--ca-file", metavar="FILE", type=Path, help="certificate authorities to trust for it")
    command.add_argument("--prefix-hits", metavar="S", help="share of prompt tokens found in cache (default: measured)")
    command.add_argument("--source", required=True, metavar="M", help="a hub id, a config.json, or where one is")
    add_fleet_options(command, first="what ran, else one replica")
    _add_output(command)
    command.set_defaults(run=lambda arguments: _guarded(lambda: _whatif(arguments, find_config, now())))


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--policies", metavar="P,P", default=",".join(DEFAULT), help=f"of {', '.join(sorted(POLICIES))}"
    )
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of the trace and of start times (default 0)")
    command.add_argument("--out", required=True, metavar="R.html", type=Path, help="write the page here")
    command.add_argument("--json", action="store_true", help="write every figure beside it, as R.json")


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except (*ERRORS, PastError, SettingsError, TraceError) as error:
        sys.stderr.write(f"archipelago: {error}\n")
        return FAILED


def _whatif(arguments: argparse.Namespace, find_config: FindConfig, now_s: float) -> int:
    names = _policies(arguments.policies)
    if arguments.seed < 0:
        raise InputError(f"--seed is {arguments.seed}; it must be 0 or more.")
    limits, rules = slo(arguments), rules_given(arguments, _name(arguments), arguments.source)
    if arguments.prometheus and arguments.begins:
        raise InputError("--begins: only a --trace has no date; the history in Prometheus begins when --since says.")
    past = _past(arguments, now_s) if arguments.prometheus else None
    trace = read_trace(arguments.trace) if past is None else reconstructed(past, arguments.seed)
    ran: Steps = () if past is None or past.ran is None else past.ran.targets(past.history.step_s)
    site = _site(arguments, find_config, ran, rules)
    scenario = _scenario(arguments, site, past, ran, rules)
    if not ran and arguments.initial and "static" not in names:
        names = (*names, "static")  # what the user says ran
    check_writable(arguments.out, option="--out")
    say = progress(time.monotonic)  # noqa: TID251
    study = Study(
        model=_name(arguments),
        source=arguments.source,
        cluster=arguments.cluster,
        slo=limits,
        initial=scenario.initial,
        seed=arguments.seed,
        tick_s=scenario.tick_s,
        trace=trace,
        results=replayed(trace, scenario, names, ran=ran, seed=arguments.seed, say=say),
        past=past,
        fidelity=None if past is None else fidelity(past, trace),
        notes=_notes(arguments, scenario, past, ran),
    )
    write(arguments.out, page(study))
    if arguments.json:
        document = {"verdict": verdict(study), **study.as_json()}
        write(arguments.out.with_suffix(".json"), json.dumps(document, indent=1, allow_nan=False) + "\n")
    sys.stdout.write("\n".join((*verdict(study), f"The whole report is in {arguments.out}.")) + "\n")
    return 0


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in POLICIES:
            raise InputError(f"--policies: {name!r} is not one of {', '.join(sorted(POLICIES))}.")
    return names


def _name(arguments: argparse.Namespace) -> str:
    """What the series call the model."""
    return str(arguments.model or arguments.source)


def _past(arguments: argparse.Namespace, now_s: float) -> Past:
    if (arguments.user is None) != (arguments.password_file is None):
        raise InputError("--user and --password-file: give both or neither.")
    token = _secret(arguments.token_file, option="--token-file")
    password = _secret(arguments.password_file, option="--password-file")
    try:
        prometheus = Prometheus(
            arguments.prometheus,
            token=token,
            user=arguments.user,
            password=password or "",
            ca_file=arguments.ca_file,
            timeout_s=_PATIENCE_S,
        )
    except ValueError as error:
        raise InputError(f"--prometheus: {str(error).removeprefix('url: ')}") from error
    with prometheus:
        return read_past(
            prometheus,
            model=_name(arguments),
            slo=slo(arguments),
            now_s=now_s,
            since_s=_long(arguments.since),
            scrape_interval_s=seconds(arguments.scrape_interval, field="--scrape-interval", unit="s"),
        )


def _secret(path: Path | None, *, option: str) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{option}: {path} cannot be read ({reason}).") from error


def _long(text: str) -> float:
    """A time that may be in days."""
    body = text.strip().lower()
    try:
        for unit in ("days", "day", "d"):
            if body.endswith(unit):
                return _DAY_S / 3600 * seconds(f"{body.removesuffix(unit)}h")
        return seconds(body)
    except QuantityError as error:
        raise InputError(f"--since: {text!r} is not accepted; give a time such as 90min, 24h or 14d.") from error


def _site(arguments: argparse.Namespace, find_config: FindConfig, ran: Steps, rules: Rules | None) -> Site:
    """Of the shapes asked for, else those worth a look; those that ran, or run at the start, are always among them."""
    spec, hardware = model(arguments.source, arguments.precision, find_config), cluster(arguments.cluster)

    def site(considered: Sequence[Shape] | None) -> Site:
        return site_of(
            spec,
            hardware,
            shapes=considered,
            **calibrated(arguments.calibration),
            kv_bytes_per_element=KV_BYTES[arguments.kv_cache],
        )

    found = site(shapes(arguments, rules))
    needed = {shape for _, pools in ran for shape in pools} | set(initial_pools(arguments) or ())
    return found if needed <= set(found.shapes) else site((*found.shapes, *sorted(needed, key=str)))


def _scenario(
    arguments: argparse.Namespace, site: Site, past: Past | None, ran: Steps, rules: Rules | None
) -> Scenario:
    hits = 0.0 if past is None else past.prefix_hit_rate
    most = max([0, *(gpus_of(pools) for _, pools in ran)])
    allowed = max_gpus(arguments, site)
    if most > allowed:
        limit = "--max-gpus" if arguments.max_gpus is not None else "--cluster"
        raise InputError(f"{limit} has {allowed} GPUs; the history has targets of {most}. Give the GPUs it ran on.")
    with named({"max_gpus": "--max-gpus", "begins_s": "--begins"}):
        return Scenario(
            site=site,
            slo=slo(arguments),
            initial=initial_pools(arguments) or (ran[0][1] if ran else pools_of({site.shapes[0]: 1})),
            max_gpus=allowed,
            times=times_of(site, measured_s=start_times_s(arguments, site)),
            prefix_hit_rate=hits
            if arguments.prefix_hits is None
            else fraction(arguments.prefix_hits, field="--prefix-hits"),
            rules=rules,
            begins_s=begins_s(arguments) if past is None else past.start_s,
        )


def _notes(arguments: argparse.Namespace, scenario: Scenario, past: Past | None, ran: Steps) -> tuple[str, ...]:
    """What a reader must know before believing the figures."""
    notes = [] if past is None else list(past.notes)
    if arguments.settings:
        notes.append(f"Archipelago keeps to what {arguments.settings} says; the others know nothing of it.")
    if not ran and not arguments.initial:
        notes.append(f"Every run begins with {spelled(scenario.initial)}, as nothing says what ran: --initial does.")
    if not ran and arguments.initial:
        notes.append(f"{spelled(scenario.initial)} is what --initial says ran, taken to have run all the time.")
    return tuple(notes)
