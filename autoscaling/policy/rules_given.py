"""The rules that the settings of a model give."""

from autoscaling.policy.rules import Rules
from autoscaling.settings.settings import ModelSettings


def rules_of(settings: ModelSettings) -> Rules:
    """The rules of one model; its shapes are known only with the cluster."""
    return Rules(
        slo=settings.slo.slo,
        shapes=settings.shapes or (),
        min_gpus=settings.gpus.min,
        max_gpus=settings.gpus.max,
        min_replicas=settings.min_replicas,
        repartition=settings.repartition,
        forecast=settings.forecast,
        forecast_quantile=settings.quantile,
        cooldown_s=settings.cooldown_s,
        down_after_s=settings.down_after_s,
        max_change_gpus=settings.max_change_gpus,
        schedule=tuple(one.scheduled for one in settings.schedule),
        windows=tuple(one.window for one in settings.windows),
    )
