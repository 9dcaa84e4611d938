"""The planner's commands: `archipelago plan`, `scaling`, `predict` and `calibrate`.

Each reads what people write ("500ms", "4x dgx-h100"), checks all of it at this edge, and prints text or, with `--json`,
plain values. What is wrong is told in one sentence and ends with 1; a plan that does not exist ends with 2.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from placement.calibration import accuracy, links
from placement.calibration import fit as calibration
from placement.calibration.rows import ENGINES, NEEDED, case_of, known_as, points_of, read_rows
from placement.clusters.terrain import regions
from placement.collectives import ExpertBackend
from placement.collectives.fitting import fit_links
from placement.cost import constants, residuals
from placement.cost.prediction import Question
from placement.given import (
    ERRORS,
    KV_BYTES,
    FindConfig,
    InputError,
    calibrated,
    cluster,
    constants_in,
    links_in,
    model,
    named,
    own_sources,
    read_csv,
    residuals_in,
    shape,
    slo,
    workload,
)
from placement.models.quantisation import PRECISIONS
from placement.planning import plan_report
from placement.planning.emit import served_configuration
from placement.planning.explain import explain
from placement.planning.plan import plan
from placement.quantities import fraction
from placement.scaling import report as scaling_report
from placement.scaling import report_html, report_png
from placement.scaling.scale import scale
from placement.shown import show, write

INFEASIBLE = 2
_FEWEST_POINTS = 5
_ROWS = "columns as --rows of `predict`, and the measured silicon_ttft_ms and silicon_tpot_ms"


def add_commands(commands: Any, find_config: FindConfig) -> None:
    """Add the planner's commands to the command line; `find_config` looks a hub id up outside the catalogue."""
    planner = commands.add_parser("plan", help="how to cut a model on a cluster, and how many replicas a rate needs")
    _add_question(planner)
    planner.add_argument("--rate", metavar="R", help="requests per second to answer: 5/s, 300/min")
    planner.add_argument("--concurrency", metavar="N", type=float, help="clients at once, instead of a rate")
    planner.add_argument("--ttft", metavar="T", help="slowest first token: 500ms")
    planner.add_argument("--tpot", metavar="T", help="slowest further token: 30ms")
    planner.add_argument(
        "--percentile",
        metavar="P",
        default="p90",
        help="share of requests that meet it (default p90: a plan tries few; fleets are held to p99 by default)",
    )
    planner.add_argument("--explain", metavar="SHAPE", help="say in sentences why this shape is better or worse: tp16")
    planner.add_argument("--emit", metavar="FILE", type=Path, help="write a configuration for `archipelago serve`")
    planner.add_argument("--top", metavar="N", type=int, default=8, help="options to show (default 8)")
    planner.set_defaults(run=_guarded(lambda arguments: _plan(arguments, find_config)))

    scaling = commands.add_parser("scaling", help="what more GPUs bring to one replica, and where it turns worse")
    _add_question(scaling)
    scaling.add_argument("--max-gpus", metavar="N", type=int, help="largest replica to look at (default: the cluster)")
    scaling.add_argument("--running", metavar="N", type=float, help="running requests (default 32)")
    scaling.add_argument("--threshold", metavar="S", default="50%", help="least share of a perfect gain (default 50%%)")
    scaling.add_argument("--html", metavar="FILE", type=Path, help="write an interactive page")
    scaling.add_argument("--png", metavar="FILE", type=Path, help="write the plots as a picture; needs matplotlib")
    scaling.set_defaults(run=_guarded(lambda arguments: _scaling(arguments, find_config)))

    predictor = commands.add_parser("predict", help="TTFT and TPOT for every row of a CSV of serving points")
    needed = f"a header and a row for each point; needed: {', '.join(NEEDED)}"
    predictor.add_argument("--rows", metavar="IN.csv", type=Path, required=True, help=needed)
    predictor.add_argument("--out", metavar="OUT.csv", type=Path, required=True, help="id, pred_ttft_ms, pred_tpot_ms")
    _add_common(predictor)
    predictor.set_defaults(run=_guarded(_predict))

    _add_calibrator(commands)


def _add_calibrator(commands: Any) -> None:
    calibrator = commands.add_parser("calibrate", help="fit the constants to your own measured serving points")
    calibrator.add_argument("rows", metavar="ROWS.csv", type=Path, help=_ROWS)
    calibrator.add_argument("--out", metavar="DIR", type=Path, help="write what was fitted here")
    calibrator.add_argument(
        "--by", choices=("group", "curve"), default="curve", help="what a fold leaves out (default: curve)"
    )
    calibrator.add_argument("--from-scratch", action="store_true", help="start at the priors, not at what was fitted")
    calibrator.add_argument(
        "--collectives",
        metavar="C",
        help="the CSV has nccl-tests of this cluster: fit its links (op, size_bytes, ranks, time_us)",
    )
    calibrator.add_argument("--folds", metavar="N", type=int, default=5, help="folds of the check (default 5; 0: none)")
    _add_common(calibrator)
    calibrator.set_defaults(run=_guarded(_calibrate))


def _add_question(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="a hub id, a config.json, or a directory with one")
    command.add_argument("--cluster", required=True, metavar="C", help="'4x dgx-h100', or a YAML or JSON file")
    command.add_argument("--input", metavar="N", default="1024", help="mean tokens of a prompt (default 1024)")
    command.add_argument("--output", metavar="N", default="256", help="mean tokens of an answer (default 256)")
    command.add_argument(
        "--spread", metavar="S", type=float, default=0, help="standard deviation of both over their mean (default 0)"
    )
    command.add_argument(
        "--prefix-hits", metavar="S", default="0%", help="share of prompt tokens found in cache (default 0%%)"
    )
    command.add_argument("--precision", choices=sorted(PRECISIONS), help="serve the weights in this format")
    command.add_argument(
        "--kv-cache", choices=sorted(KV_BYTES), default="auto", help="format of the KV cache (default auto)"
    )
    command.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="which engine's speed to predict (default vllm)"
    )
    exchanges = get_args(ExpertBackend)
    how = f"how experts exchange tokens: {', '.join(exchanges)} (default {exchanges[0]})"
    command.add_argument("--all2all", metavar="X", choices=exchanges, default=exchanges[0], help=how)
    _add_common(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--calibration", metavar="DIR", type=Path, help="use what `calibrate --out` wrote")
    command.add_argument("--json", action="store_true", help="print plain values instead of text")


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except ERRORS as error:
            print(f"archipelago: {error}", file=sys.stderr)
            return 1

    return guarded


def _plan(arguments: argparse.Namespace, find_config: FindConfig) -> int:
    if arguments.top < 1:
        raise InputError(f"--top: {arguments.top} is not accepted; give a number of options of at least 1.")
    explained = shape(arguments.explain, field="--explain") if arguments.explain else None
    if arguments.emit and arguments.engine != "vllm":
        raise InputError(f"--emit: `archipelago serve` runs vllm, not {arguments.engine}; leave out one of the two.")
    on = cluster(arguments.cluster)
    made = plan(
        model(arguments.model, arguments.precision, find_config),
        on,
        workload(arguments),
        slo(arguments),
        engine=arguments.engine,
        exchange=arguments.all2all,
        kv_bytes_per_element=KV_BYTES[arguments.kv_cache],
        **calibrated(arguments.calibration),
    )
    sentences = explain(made, explained, regions(on)[0]) if explained else []
    own = own_sources(arguments.calibration)
    if arguments.json:
        found = plan_report.as_json(made, own_sources=own)
        print(json.dumps(found | ({"explanation": sentences} if sentences else {}), indent=2))
    elif sentences:
        show("\n".join(sentences))
    else:
        show(plan_report.as_text(made, most=arguments.top, own_sources=own))
    if made.best is None:
        return INFEASIBLE
    if arguments.emit:
        write(arguments.emit, served_configuration(made, arguments.model, precision=arguments.precision))
        print(f"what `archipelago serve` takes is written to {arguments.emit}", file=sys.stderr)
    return 0


def _scaling(arguments: argparse.Namespace, find_config: FindConfig) -> int:
    region = regions(cluster(arguments.cluster))[0]
    question = Question(
        model=model(arguments.model, arguments.precision, find_config),
        workload=workload(arguments),
        **calibrated(arguments.calibration),
        engine=arguments.engine,
        exchange=arguments.all2all,
        kv_bytes_per_element=KV_BYTES[arguments.kv_cache],
    )
    with named({"max_gpus": "--max-gpus", "running": "--running", "threshold": "--threshold"}):
        found = scale(
            question,
            region,
            max_gpus=region.gpus if arguments.max_gpus is None else arguments.max_gpus,
            running=arguments.running,
            threshold=fraction(arguments.threshold, field="--threshold"),
        )
    if arguments.json:
        print(json.dumps(scaling_report.as_json(found), indent=2))
    else:
        show(scaling_report.as_text(found))
    if arguments.html:
        write(arguments.html, report_html.page(found))
    if arguments.png:
        try:
            report_png.draw(found, arguments.png)
        except OSError as error:
            raise InputError(f"{arguments.png} cannot be written: {error.strerror}.") from error
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    fitted, learnt = constants_in(arguments.calibration), residuals_in(arguments.calibration)
    rows = read_rows(read_csv(arguments.rows))
    cases = [case_of(row, fitted, or_similar=True) for row in rows]
    for model_id in sorted({row.model_id for row in rows}):
        if (known := known_as(model_id)) != model_id:
            print(f"archipelago: {model_id} is not known; its rows are answered as if it were {known}", file=sys.stderr)
    formulas = calibration.predict(calibration.stacked(cases), fitted)
    points = points_of(cases)
    ttft_ms = formulas.ttft_ms * residuals.corrections(learnt, points, "ttft")
    tpot_ms = formulas.tpot_ms * residuals.corrections(learnt, points, "tpot")
    answers = [
        {"id": row.id, "pred_ttft_ms": round(float(ttft), 4), "pred_tpot_ms": round(float(tpot), 5)}
        for row, ttft, tpot in zip(rows, ttft_ms, tpot_ms, strict=True)
    ]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ("id", "pred_ttft_ms", "pred_tpot_ms"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(answers)
    write(arguments.out, table.getvalue())
    print(json.dumps(answers, indent=2) if arguments.json else f"{len(answers)} rows written to {arguments.out}")
    return 0


def _calibrate_links(arguments: argparse.Namespace) -> int:
    points = links.read_points(
        read_csv(arguments.rows), regions(cluster(arguments.collectives, field="--collectives"))[0]
    )
    found = fit_links(points, start=links_in(arguments.calibration))
    checks = {"points": len(points), "error_before": found.error_before, "error_after": found.error_after}
    factors = links.as_document(found.calibration)
    if arguments.json:
        print(json.dumps(checks | factors, indent=2))
    else:
        print(f"{len(points)} points: mean error {found.error_before:.1%} before, {found.error_after:.1%} after")
        for level, each in factors.items():
            print(f"  {level:<8} latency x {each['latency']:.2f}, bandwidth x {each['bandwidth']:.2f}")
    if arguments.out:
        write(arguments.out / "links.json", json.dumps(factors, indent=1) + "\n")
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    if arguments.collectives:
        return _calibrate_links(arguments)
    if arguments.folds < 0 or arguments.folds == 1:
        raise InputError(f"--folds: {arguments.folds} is not accepted; give at least 2, or 0 for no check.")
    start = constants_in(arguments.calibration)
    if arguments.from_scratch:
        start = constants.priors(start)
    rows = read_rows(read_csv(arguments.rows))
    measured = [row for row in rows if row.ttft_ms and row.tpot_ms]
    if len(measured) < _FEWEST_POINTS:
        raise InputError(
            f"{arguments.rows}: {len(measured)} rows have silicon_ttft_ms and silicon_tpot_ms; "
            f"at least {_FEWEST_POINTS} are needed."
        )
    print(f"fitting to {len(measured)} points", file=sys.stderr)
    cases = [case_of(row, start) for row in measured]
    batch = calibration.stacked(cases)
    before = calibration.predict(batch, start)
    fitted = calibration.fit(batch, start, weights=accuracy.trust(measured))
    learnt = residuals.learn(
        points_of(cases),
        accuracy.logarithms(measured, calibration.predict(batch, fitted)),
    )
    checks = {"before": accuracy.errors(measured, before)}
    folds = min(arguments.folds, len(set(accuracy.labels_of(cases, arguments.by))))
    if folds > 1:
        print(f"checking with {folds} folds", file=sys.stderr)
        held_out = accuracy.cross_validate(cases, start, by=arguments.by, folds=folds)
        checks[f"out of fold, by {arguments.by}"] = accuracy.errors(measured, held_out)
    elif arguments.folds:
        print(f"not checked: all points are of one {arguments.by}, and nothing is left to predict", file=sys.stderr)
    print(json.dumps(accuracy.as_json(checks), indent=2) if arguments.json else accuracy.as_text(checks))
    if arguments.out:
        write(arguments.out / "constants.json", json.dumps(constants.write(fitted), indent=1) + "\n")
        write(arguments.out / "residuals.json", residuals.write(learnt))
    return 0
