"""How fast replicas should be, from the planner: what an ingress goes by until it has seen their steps."""

from collections.abc import Iterable
from dataclasses import replace

from deployments.config import ModelConfig
from deployments.placing import USUAL_REQUESTS
from deployments.routing import PredictedSpeed
from placement import Cluster, ModelSpec, Prediction, Question, Shape, predict, spec_of
from placement.clusters.machines import gpu_kind, gpu_of
from placement.clusters.terrain import regions
from placement.cost import constants, residuals
from placement.models.precision import kv_bytes_per_element


def predicted_speeds(
    config: ModelConfig, model: ModelSpec, shapes: Iterable[Shape], cluster: Cluster
) -> dict[Shape, PredictedSpeed]:
    """The speed of each shape on GPUs of `cluster` that hold it; none where nothing is known of the GPUs.

    A simulated engine is as fast as the GPU that it simulates, times its time scale.
    """
    simulated = config.simulated
    if simulated is not None and (kind := gpu_kind(simulated.gpu)) is not None:
        gpu = gpu_of(kind)
        cluster = Cluster(nodes=tuple(replace(node, gpu=gpu, links=None) for node in cluster.nodes))
    if not all(spec_of(gpu) for gpu in cluster.gpu_kinds):
        return {}
    question = Question(
        model=model,
        workload=USUAL_REQUESTS,
        constants=constants.shipped(),
        residuals=residuals.shipped(),
        kv_bytes_per_element=kv_bytes_per_element(model, str(config.engine.get("kv_cache_dtype", "auto"))),
    )
    asked = [
        (shape, region)
        for shape in shapes
        for region in regions(cluster)
        if shape.tp <= region.island_gpus and shape.gpus <= region.gpus
    ]
    found = predict(question, asked)
    time_scale = simulated.time_scale if simulated else 1.0
    return {one.shape: _speed(one, time_scale) for one in reversed(found) if one.fits}  # the largest region's counts


def _speed(prediction: Prediction, time_scale: float) -> PredictedSpeed:
    lone, full = prediction.loads[0], prediction.loads[-1]
    read_tokens_per_s = full.requests_per_s * USUAL_REQUESTS.input_tokens.mean_tokens
    return PredictedSpeed(
        prefill_tokens_per_s=read_tokens_per_s / full.prompt_busy * time_scale,
        decode_tokens_per_s=full.running / sum(full.parts_s.values()) * time_scale,
        full_batch=round(full.running),
        lone_step_s=sum(lone.parts_s.values()) / time_scale,
        communication_share=full.communication_share,
    )
