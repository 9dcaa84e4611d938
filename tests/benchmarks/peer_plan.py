"""NVIDIA aiconfigurator's own whole plan, timed for plan_speed.py: a question on standard input, seconds on the output.

It runs in the interpreter that has the peer and knows nothing of this repository. `aiconfigurator-core` has all that
a plan of aggregated serving takes: it enumerates the shapes, and for each one tries batches and chunks of prompts under
the limits (`find_best_agg_result_under_constraints`); the peer's command finds the same best shape, batch and tokens/s.
The command also weighs disaggregated serving, and needs the package `aiconfigurator`, which is deprecated: it is timed
where that is installed.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

_NO_LIMIT_MS = 1e6
_WIDEST_TENSOR_PARALLEL = 8  # the command tries no more, and no pipelines
_BEST = 5  # results kept for each shape, as the command does


def _plan(question: dict[str, Any]) -> dict[str, Any]:
    """Every shape that the command would try, the best result of each, and how many steps that took."""
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.common import BackendName
    from aiconfigurator_core.sdk.config import RuntimeConfig
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.models import check_is_moe, get_model
    from aiconfigurator_core.sdk.perf_database import get_database, get_latest_database_version
    from aiconfigurator_core.sdk.utils import enumerate_parallel_config

    name, system, engine = question["model"], question["system"], question["engine"]
    database = get_database(system, engine, get_latest_database_version(system, engine))
    moe = check_is_moe(name)
    widths = [1 << power for power in range(question["gpus"].bit_length()) if 1 << power <= question["gpus"]]
    narrow = [width for width in widths if width <= _WIDEST_TENSOR_PARALLEL]
    limits = RuntimeConfig(
        isl=question["tokens_in"], osl=question["tokens_out"], ttft=_NO_LIMIT_MS, tpot=question["tpot_ms"]
    )
    shapes = enumerate_parallel_config(
        num_gpu_list=widths,
        tp_list=narrow,
        pp_list=[1],
        dp_list=widths if moe else [1],
        moe_tp_list=narrow if moe else [1],
        moe_ep_list=widths if moe else [1],
        is_moe=moe,
        backend=BackendName[engine],
    )
    answered, best = 0, 0.0
    for tp, pp, dp, moe_tp, moe_ep, _ in shapes:
        with contextlib.suppress(Exception):  # no measurements of this shape: the command passes over it as well
            model = get_model(name, build_model_config(tp, pp, dp, moe_tp, moe_ep), engine)
            found = get_backend(engine).find_best_agg_result_under_constraints(model, database, limits, top_k=_BEST)
            answered += 1
            best = max([best, *found.get_summary_df()["tokens/s/gpu"]])
    return {"shapes": answered, "best": best}


def _command(question: dict[str, Any]) -> dict[str, Any]:
    """What `aiconfigurator cli default` computes, as a library."""
    from aiconfigurator.cli.api import cli_default

    found = cli_default(
        model_path=question["model"],
        total_gpus=question["gpus"],
        system=question["system"],
        backend=question["engine"],
        isl=question["tokens_in"],
        osl=question["tokens_out"],
        ttft=_NO_LIMIT_MS,
        tpot=question["tpot_ms"],
    )
    return {"best": found.best_throughputs["agg"]}


def _steps(question: dict[str, Any]) -> dict[str, Any]:
    """Two steps, with and without a prompt, of given shapes and batches."""
    from aiconfigurator_core.sdk.engine import EngineHandle

    tokens_in, tokens_out = question["tokens_in"], question["tokens_out"]
    for tp, pp, batches in question["shapes"]:
        engine = EngineHandle.compile(question["model"], question["system"], question["engine"], tp_size=tp, pp_size=pp)
        for batch in batches:
            engine.mixed_step_latency(tokens_in, batch, tokens_in, tokens_out)
            engine.decode_step_latency(batch, tokens_in, tokens_out)
    return {}


_WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"plan": _plan, "command": _command, "steps": _steps}


def main() -> None:
    """Do the same `rounds` times: the first has the imports and the loading of the peer's tables in it."""
    question = json.load(sys.stdin)
    logging.disable(logging.CRITICAL)
    rounds, found = [], {}
    with contextlib.redirect_stdout(sys.stderr):
        for _ in range(question["rounds"]):
            started_s = time.perf_counter()
            found = _WORK[question["what"]](question)
            rounds.append(time.perf_counter() - started_s)
    sys.stdout.write(json.dumps({"rounds_s": rounds, **found}) + "\n")


if __name__ == "__main__":
    main()
