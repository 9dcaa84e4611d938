"""Runs the cuts on the emulated islands: one Ray node on each, the real engine, every speed of the link.

The engine starts as it does in a replica: an actor in the first bundle of a placement group that is made from a layout.
What the planner would refuse (a tensor-parallel group over two islands) is exactly what is measured here, so the
layouts are written by hand.
"""

import contextlib
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deployments import local_cluster
from deployments.app import REPLICA_ENV
from deployments.bundles import REPLICA_CPUS, bundles_for
from deployments.crossover.namespaces import ADDRESSES, DEVICE, UNSHAPED, Speed, inside, run_all, shape_commands
from deployments.crossover.probe import probe, start_probers
from deployments.crossover.record import ACROSS, WORKS, Cut, LinkProbe, StepTime, Work
from deployments.islands import ISLAND_LABEL, NODE_LABEL, Inventory, inventory
from deployments.local_cluster import CLUSTER_ID_ENV, ClusterStartError, LocalCluster
from deployments.simulated_gpus import SIMULATED_GPUS_ENV
from placement import Layout, Seat, Shape

GCS_PORT = 6379  # nothing else listens inside a new namespace
NODE_START_TIMEOUT_S = 120
ENGINE_START_TIMEOUT_S = 180
PASSES = 3  # over all speeds, so that a busy minute of the machine does not fall on one speed alone
# A batch that took this long is not repeated: on a slow link there is less to average out.
LONG_S = 6.0
# A GPU is shared with nobody, so each worker has a core, and the engine comes before all else on this machine. Its
# processes take turns: they spin while they wait (vllm/distributed/device_communicators/shm_broadcast.py,
# SpinCondition), and only with a real-time policy does sched_yield hand the core to whoever has work. The stopwatch
# sleeps while it waits, and must read the clock when a step ends, not when the next one lets it.
ENGINE_PRIORITY, STOPWATCH_PRIORITY = 1, 2
VOCABULARY = range(3, 2048)  # the made models' tokens without the special ones

ENGINE_ARGS: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 * 2**20,
    "enable_prefix_caching": False,
    # vLLM schedules ahead with tensor parallelism but not with a pipeline on the CPU; here all cuts take turns alike.
    "async_scheduling": False,
}


class PlacedElsewhereError(Exception):
    """A worker does not run on the node of its seat: what would be measured is another cut."""


def layout_of(cut: Cut) -> Layout:
    """Where the ranks of a cut sit; node i is the whole of island i."""
    nodes = (0, 1) if cut in ACROSS else (0, 0)
    shape = Shape(pp=2) if cut is Cut.PP2_ACROSS else Shape(tp=1 if cut is Cut.TP1 else 2)
    seats = tuple(_seat(rank, nodes[rank], rank - nodes[rank], is_stage=shape.pp > 1) for rank in range(shape.gpus))
    return Layout(shape=shape, seats=seats)


def _seat(rank: int, node: int, slot: int, *, is_stage: bool) -> Seat:
    ranks = {"pp_rank": rank, "tp_rank": 0} if is_stage else {"pp_rank": 0, "tp_rank": rank}
    return Seat(rank=rank, dp_rank=0, island=f"island-{node}", node=f"node-{node}", slot=slot, **ranks)


def node_environ(environ: Mapping[str, str], cluster_id: str, address: str) -> dict[str, str]:
    """The environment of one Ray node: simulated GPUs of one core each, everything over the cable."""
    env = local_cluster.cluster_environ(environ, cluster_id)
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
    return env | {
        SIMULATED_GPUS_ENV: "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",  # an island has no way out
        "VLLM_HOST_IP": address,
        "GLOO_SOCKET_IFNAME": DEVICE,  # gloo would listen on the loopback device of its own island
    }


def node_command(index: int, temp_dir: str) -> list[str]:
    """How the Ray node of island `index` is started, inside its namespace."""
    address = f"{ADDRESSES[0]}:{GCS_PORT}"
    head = ["--head", f"--port={GCS_PORT}", f"--temp-dir={temp_dir}", "--include-dashboard=false"]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"),
        *(head if index == 0 else [f"--address={address}"]),
        *(f"--node-ip-address={ADDRESSES[index]}", "--num-cpus=4", "--num-gpus=2"),
        f"--labels={ISLAND_LABEL}=island-{index},{NODE_LABEL}=node-{index}",
        f"--object-store-memory={local_cluster.OBJECT_STORE_BYTES}",
    ]


@contextlib.contextmanager
def ray_on(islands: Sequence[str], environ: Mapping[str, str]) -> Iterator[Inventory]:
    """A Ray node on each island, and this process connected to them from the first. All of it ends with the context.

    Raises:
        ClusterStartError: a node did not come up.
    """
    # Ray puts unix sockets below its directory, and their paths must stay under 108 characters: hence not the cwd.
    temp_dir = tempfile.mkdtemp(prefix="archipelago-")
    address = f"{ADDRESSES[0]}:{GCS_PORT}"
    cluster = LocalCluster(cluster_id=uuid.uuid4().hex[:12], address=address, temp_dir=temp_dir)
    try:
        for index, island in enumerate(islands):
            with inside(island):
                _start_node(index, cluster, environ)
        with inside(islands[0]):
            ray.init(address=address, _node_ip_address=ADDRESSES[0], log_to_driver=False, logging_level=logging.WARNING)
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        yield inventory(nodes, dict.fromkeys((node["NodeID"] for node in nodes), 2**30))
    finally:
        # First: it removes the shared memory of whatever still runs, and Ray would end that when its driver leaves.
        local_cluster.stop(cluster)
        ray.shutdown()


def _start_node(index: int, cluster: LocalCluster, environ: Mapping[str, str]) -> None:
    env = node_environ(environ, cluster.cluster_id, ADDRESSES[index])
    assert env[CLUSTER_ID_ENV] == cluster.cluster_id, "stop() finds processes by it"
    command = node_command(index, cluster.temp_dir)
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=NODE_START_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterStartError(f"Ray node {index} did not start within {NODE_START_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise ClusterStartError(f"Ray node {index} did not start:\n{(done.stdout + done.stderr)[-2000:]}")


def measure_links(
    islands: Sequence[str], where: Inventory, speeds: Sequence[Speed], say: Callable[[str], None]
) -> Iterator[LinkProbe]:
    """Probe the link at every speed."""
    probers = start_probers([where.selectors[f"node-{index}"] for index in range(len(ADDRESSES))])
    try:
        for speed in speeds:
            run_all(shape_commands(islands, speed))
            found = probe(probers, speed)
            largest = max(found.send_recv_s)
            say(f"  {speed.name}: {largest} bytes in {found.send_recv_s[largest] * 1e3:.1f} ms")
            yield found
    finally:
        for prober in probers:
            ray.kill(prober)
        run_all(shape_commands(islands, Speed(name=UNSHAPED, bits_per_s=None)))


class Stopwatch:
    """The Ray actor beside rank 0; it holds the engine."""

    async def start(self, model: str, shape: Shape, group: PlacementGroup) -> list[str]:
        """Start the engine; answer with the Ray node of each rank."""
        # Here and not above: the command line imports this module, and vLLM takes seconds to import.
        from deployments.crossover.timed_engine import TimedEngine
        from deployments.engine import shard_config

        self._engine = TimedEngine(shard_config(model, ENGINE_ARGS, shape, group))
        found = await self._engine.whereabouts()
        await self._engine.unlink_shared_memory()
        cores = sorted(os.sched_getaffinity(0))
        _prefer(os.getpid(), STOPWATCH_PRIORITY, cores)
        for engine_core in psutil.Process().children():
            _prefer(engine_core.pid, ENGINE_PRIORITY, cores)
        for rank, worker in enumerate(found):
            _prefer(worker.pid, ENGINE_PRIORITY, [cores[rank % len(cores)]])
        return [worker.ray_node_id for worker in found]

    async def time_steps(self, work: Work, seed: int) -> list[float]:
        """Seconds of each step of one batch of random prompts."""
        chosen = random.Random(seed)
        prompts = [chosen.choices(VOCABULARY, k=work.prompt_tokens) for _ in range(work.requests)]
        return await self._engine.time_steps(work, prompts)


@contextlib.contextmanager
def engine_for(cut: Cut, model: str, where: Inventory) -> Iterator[Any]:
    """The actor of a running engine that is cut this way and sits where `layout_of` says.

    Raises:
        PlacedElsewhereError: it does not sit there.
    """
    layout = layout_of(cut)
    bundles = bundles_for(layout, where.selectors)
    group = placement_group(
        [dict(resources) for resources in bundles.resources],
        bundle_label_selector=[dict(selector) for selector in bundles.selectors],
    )
    # EngineCore is a Ray driver of its own and would otherwise look for whichever cluster was started last.
    env = {**REPLICA_ENV, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    actor: Any = (
        ray.remote(Stopwatch)
        .options(num_cpus=REPLICA_CPUS, scheduling_strategy=strategy, runtime_env={"env_vars": env})
        .remote()
    )
    found = ray.get(actor.start.remote(model, layout.shape, group), timeout=ENGINE_START_TIMEOUT_S)
    wanted = [where.ray_node_ids[seat.node] for seat in layout.seats]
    if found != wanted:
        raise PlacedElsewhereError(f"{cut}: ranks are on Ray nodes {found}, not {wanted}")
    yield actor
    ray.kill(actor)  # after an error all of the cluster ends, see `ray_on`
    remove_placement_group(group)


def measure_cut(
    cut: Cut, model: str, islands: Sequence[str], where: Inventory, speeds: Sequence[Speed], say: Callable[[str], None]
) -> Iterator[StepTime]:
    """Every kind of step at every speed, with one engine; a cut that stays inside an island only unshaped."""
    tried = speeds if cut in ACROSS else [Speed(name=UNSHAPED, bits_per_s=None)]
    steps_s: dict[tuple[str, str], list[float]] = {}
    slow: set[tuple[str, str]] = set()
    with engine_for(cut, model, where) as engine:
        for work in WORKS:
            ray.get(engine.time_steps.remote(work, 0))
        for seed in range(1, PASSES + 1):
            for speed in tried:
                run_all(shape_commands(islands, speed))
                for work in WORKS:
                    case = (speed.name, work.name)
                    if case not in slow:
                        times_s = ray.get(engine.time_steps.remote(work, seed))
                        steps_s.setdefault(case, []).extend(times_s)
                        slow |= {case} if sum(times_s) > LONG_S else set()
            say(f"  {cut}: pass {seed} of {PASSES}")
        run_all(shape_commands(islands, Speed(name=UNSHAPED, bits_per_s=None)))
    for (speed_name, work_name), times_s in steps_s.items():
        yield _step_time(cut, speed_name, work_name, times_s)


def _step_time(cut: Cut, speed: str, work: str, steps_s: list[float]) -> StepTime:
    low_s, median_s, high_s = statistics.quantiles(steps_s, n=4) if len(steps_s) > 1 else steps_s * 3
    return StepTime(cut=cut, speed=speed, work=work, median_s=median_s, low_s=low_s, high_s=high_s, count=len(steps_s))


def _prefer(pid: int, priority: int, cores: Collection[int]) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)
        os.sched_setscheduler(thread.id, os.SCHED_RR, os.sched_param(priority))
