"""How long a simulated day takes: python tests/benchmarks/simulator_speed.py [--requests-per-s R] [--hours H]

A day of 20 requests/s (1.73 million, of 1,000 and 200 tokens on average) through replicas of a 70B model on H100s under
a policy that is asked every 15 s, in one process. The bar is a minute on one core; processor time is what counts on a
machine that others use too.
"""

import argparse
import sys
import time

from autoscaling.capacity.site import site_of
from autoscaling.capacity.times import times_of
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.synthetic import Load, constant, diurnal, made
from placement import ModelSpec, Shape, Slo, cluster_of
from placement.models.catalogue import config

_MODEL = "meta-llama/Llama-3.1-70B"
_BAR_S = 60.0
_DAY_HOURS = 24.0
_HOUR_S = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests-per-s", type=float, default=20.0)
    parser.add_argument("--hours", type=float, default=_DAY_HOURS)
    parser.add_argument("--policy", choices=sorted(POLICIES), default="queue")
    arguments = parser.parse_args()
    scenario = _scenario()
    load = Load(
        requests_per_s=diurnal(arguments.requests_per_s, 0.5),
        input_tokens=constant(1000),
        output_tokens=constant(200),
        duration_s=arguments.hours * _HOUR_S,
    )
    trace = made(load, seed=1)
    policy = POLICIES[arguments.policy](scenario, trace)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    result = run(trace, scenario, policy, seed=1)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    bar_s = _BAR_S * arguments.hours / _DAY_HOURS
    sys.stdout.write(
        f"{len(trace):,} requests in {arguments.hours:g} h under {policy.name}: attainment {result.attainment:.4f},\n"
    )
    sys.stdout.write(f"{result.gpu_hours:.0f} GPU-hours, {result.actions['up']} up, {result.actions['down']} down\n")
    sys.stdout.write(
        f"processor {cpu_s:.1f} s, wall {took_s:.1f} s, {cpu_s / len(trace) * 1e6:.1f} us each; bar {bar_s:.1f} s\n"
    )
    return 0 if cpu_s <= bar_s else 1


def _scenario() -> Scenario:
    hf_config = config(_MODEL)
    assert hf_config is not None
    site = site_of(ModelSpec.from_hf_config(hf_config, name=_MODEL), cluster_of("dgx-h100", 8))
    return Scenario(
        site=site,
        slo=Slo(ttft_s=2.0, tpot_s=0.05, percentile=0.99),
        initial={Shape(tp=4): 4},
        max_gpus=64,
        times=times_of(site),
    )


if __name__ == "__main__":
    sys.exit(main())
