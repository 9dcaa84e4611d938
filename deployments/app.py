"""From plans to Serve applications: one for the ingresses of a model, one for each replica."""

from collections.abc import Mapping

from ray import serve
from ray.serve import Application, Deployment

from deployments.bundles import REPLICA_CPUS, bundles_for
from deployments.ingress import Ingress, IngressPlan
from deployments.replica import Replica, ReplicaPlan

REPLICA_DEPLOYMENT = "replica"
INGRESS_DEPLOYMENT = "ingress"
MAX_CALLS = 1000
HEALTH_CHECK_PERIOD_S = 10  # replicas and ingresses that break exit by themselves, which Ray sees at once
HEALTH_CHECK_TIMEOUT_S = 30
# Requests do not pass through Serve, so it has nothing to wait for; whoever deletes an application has drained it.
SHUTDOWN_TIMEOUT_S = 2
# The actor itself holds no GPU, so Ray would hide all of them from vLLM's look at the hardware.
REPLICA_ENV = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
# The ingress never touches a device: with this the same build of vLLM starts on a head node without a GPU.
INGRESS_ENV = {"VLLM_TARGET_DEVICE": "cpu"}
# Clients know one address, so the ingresses are where Ray's head is.
HEAD_NODE = {"node:__internal_head__": 0.001}


def replica_app(plan: ReplicaPlan, selectors: Mapping[str, Mapping[str, str]], env: Mapping[str, str]) -> Application:
    """Build the application of one replica; ``selectors`` maps node names to Ray labels."""
    bundles = bundles_for(plan.layout, selectors)
    # With one rank the engine runs below the actor, which therefore holds the GPU; else its workers hold them.
    has_gpu = plan.layout.shape.gpus == 1
    deployment: Deployment = serve.deployment(
        name=REPLICA_DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=MAX_CALLS,
        max_constructor_retry_count=1,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        ray_actor_options={
            "num_cpus": REPLICA_CPUS,
            "num_gpus": int(has_gpu),
            "runtime_env": {"env_vars": {**({} if has_gpu else REPLICA_ENV), **env}},
        },
        placement_group_bundles=[dict(resources) for resources in bundles.resources],
        placement_group_bundle_label_selector=[dict(selector) for selector in bundles.selectors],
        placement_group_strategy="PACK",
    )(Replica)
    return deployment.bind(plan)


def ingress_app(plan: IngressPlan, env: Mapping[str, str]) -> Application:
    """Build the application that answers HTTP."""
    deployment: Deployment = serve.deployment(
        name=INGRESS_DEPLOYMENT,
        num_replicas=plan.ingresses,
        max_ongoing_requests=MAX_CALLS,
        max_constructor_retry_count=3,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        ray_actor_options={
            "num_cpus": 1,
            "resources": HEAD_NODE,
            "runtime_env": {"env_vars": {**INGRESS_ENV, **env}},
        },
    )(Ingress)
    return deployment.bind(plan)
