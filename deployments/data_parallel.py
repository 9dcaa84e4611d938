"""Data-parallel attention: one EngineCore for each data-parallel rank, placed by the layout. Part of the vLLM adapter.

vLLM runs these EngineCores as Ray actors and makes a placement group of its own for each, on nodes of its choice
(vllm/v1/engine/utils.py, CoreEngineActorManager). A replica has one placement group that the layout decided, so only
that part is replaced: rank d's EngineCore goes to its first bundle, its workers to bundles d*n .. d*n + n-1.
"""

import copy
import os
import threading
from collections import Counter
from typing import Any, cast

import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from vllm.config import VllmConfig
from vllm.v1.engine import utils
from vllm.v1.engine.core import DPMoEEngineCoreActor
from vllm.v1.engine.utils import CoreEngineActorManager, EngineZmqAddresses
from vllm.v1.executor import Executor

from deployments.bundles import ENGINE_CORE_CPUS


class SeatedEngineCores(CoreEngineActorManager):
    """CoreEngineActorManager over the one placement group in ``parallel_config.placement_group``."""

    def __init__(
        self, vllm_config: VllmConfig, addresses: EngineZmqAddresses, executor_class: type[Executor], log_stats: bool
    ) -> None:
        self.addresses = addresses
        self.executor_class = executor_class
        self.log_stats = log_stats
        self.env_vars_dict = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
        self.created_placement_groups: list[Any] = []  # the group belongs to Serve, which also removes it
        self.manager_stopped = threading.Event()
        self.failed_proc_name = None
        ranks = range(vllm_config.parallel_config.data_parallel_size)
        local_ranks = _local_ranks(vllm_config)
        actors = [self._start(vllm_config, rank, local_ranks[rank]) for rank in ranks]
        self.placement_group_is_local = [rank == 0 for rank in ranks]
        self.local_engine_actors, self.remote_engine_actors = actors[:1], actors[1:]
        ray.get([actor.wait_for_init.remote() for actor in actors])
        self.actor_run_ref_dict = {actor: actor.run.remote() for actor in actors}
        self.run_refs = list(self.actor_run_ref_dict.values())

    def _start(self, vllm_config: VllmConfig, rank: int, local_rank: int) -> Any:
        config = copy.deepcopy(vllm_config)
        utils._apply_dp_identity_suffix(config, rank)
        world_size = config.parallel_config.world_size
        first = rank * world_size
        indices = ",".join(map(str, range(first, first + world_size)))
        placement_group = cast(PlacementGroup, config.parallel_config.placement_group)
        strategy = PlacementGroupSchedulingStrategy(placement_group, placement_group_bundle_index=first)
        env = self.env_vars_dict | {"VLLM_RAY_BUNDLE_INDICES": indices}
        actor_class = ray.remote(DPMoEEngineCoreActor).options(
            num_cpus=ENGINE_CORE_CPUS, scheduling_strategy=strategy, runtime_env={"env_vars": env}
        )
        return actor_class.remote(
            vllm_config=config,
            executor_class=self.executor_class,
            log_stats=self.log_stats,
            local_client=rank == 0,
            addresses=self.addresses,
            dp_rank=rank,
            local_dp_rank=local_rank,
        )


def _local_ranks(vllm_config: VllmConfig) -> list[int]:
    """For each data-parallel rank, how many before it have their EngineCore on the same node."""
    parallel_config = vllm_config.parallel_config
    nodes = placement_group_table(parallel_config.placement_group)["bundles_to_node_id"]
    seen: Counter[str] = Counter()
    local_ranks = []
    for rank in range(parallel_config.data_parallel_size):
        node = nodes[rank * parallel_config.world_size]
        local_ranks.append(seen[node])
        seen[node] += 1
    return local_ranks


def seat_engine_cores() -> None:
    """Make vLLM start data-parallel EngineCores where the layout puts them, in this process."""
    utils.CoreEngineActorManager = SeatedEngineCores  # type: ignore[misc, assignment]
