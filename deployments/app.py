"""From plans to Serve applications: one for the ingress, one for each replica."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from deployments.bundles import REPLICA_CPUS, bundles_for
from deployments.ingress import REPLICA_DEPLOYMENT, Ingress
from deployments.replica import Replica, ReplicaPlan

# A replica answers thousands of requests over a handful of calls, and its health check is cheap.
MAX_CALLS = 10_000
HEALTH_CHECK_PERIOD_S = 2
HEALTH_CHECK_TIMEOUT_S = 30
# The actor itself holds no GPU, so Ray would hide all of them from vLLM's look at the hardware.
REPLICA_ENV = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
# The ingress never touches a device: with this the same build of vLLM starts on a head node without a GPU.
INGRESS_ENV = {"VLLM_TARGET_DEVICE": "cpu"}


def replica_app(
    plan: ReplicaPlan, selectors: Mapping[str, Mapping[str, str]], env: Mapping[str, str], drain_timeout_s: float
) -> Application:
    """Build the application of one replica; ``selectors`` maps node names to Ray labels."""
    bundles = bundles_for(plan.layout, selectors)
    deployment: Deployment = serve.deployment(
        name=REPLICA_DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=MAX_CALLS,
        max_constructor_retry_count=1,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=drain_timeout_s,
        ray_actor_options={
            "num_cpus": REPLICA_CPUS,
            "num_gpus": 0,
            "runtime_env": {"env_vars": {**REPLICA_ENV, **env}},
        },
        placement_group_bundles=[dict(resources) for resources in bundles.resources],
        placement_group_bundle_label_selector=[dict(selector) for selector in bundles.selectors],
        placement_group_strategy="PACK",
    )(Replica)
    return deployment.bind(plan)


def ingress_app(
    model: str,
    engine_args: Mapping[str, Any],
    frontend_args: Mapping[str, Any],
    replicas: Sequence[str],
    env: Mapping[str, str],
    ingresses: int,
) -> Application:
    """Build the application that answers HTTP for the named replicas."""
    deployment: Deployment = serve.deployment(
        name="ingress",
        num_replicas=ingresses,
        max_ongoing_requests=MAX_CALLS,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {**INGRESS_ENV, **env}}},
    )(serve.ingress()(Ingress))
    return deployment.bind(model, engine_args, frontend_args, replicas)
