"""What routing a request costs an ingress: python tests/benchmarks/routing_speed.py

Microseconds of processor time (the best of several rounds) of each step, and the memory of the prefix index.
"""

import random
import sys
import time
import timeit
import tracemalloc
from collections.abc import Callable
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from routing_builders import arrival, candidate

from deployments.routing import Limits, PredictedSpeed, PrefixIndex, SpeedMeter, admit, block_hashes, choose

_REPLICAS = 64
_PROMPTS = {"4k": 4096, "128k": 131_072}
_PLENTY = 10**9


def main() -> None:
    """Measure and print."""
    source = random.Random(1)
    _print_choosing(source)
    for name, length in _PROMPTS.items():
        _print_prefixes(name, [source.randrange(150_000) for _ in range(length)], source)
    _print_memory(source)
    _print_observing()


def _print_choosing(source: random.Random) -> None:
    busy = [
        candidate(f"tp4pp2-{index}", waiting_prefill_tokens=source.randrange(20_000), kv_free_tokens=500_000)
        for index in range(_REPLICAS)
    ]
    idle = [candidate(f"tp4pp2-{index}") for index in range(_REPLICAS)]
    full = [candidate(f"tp4pp2-{index}", waiting=999) for index in range(_REPLICAS)]
    cached = {each.replica: source.randrange(1000) for each in busy[::3]}
    for name, replicas in (("busy", busy), ("equal", idle)):
        _print(f"choose of {_REPLICAS} {name}", lambda replicas=replicas: choose(arrival(), replicas, cached, "i"))
        _print(
            f"admit of {_REPLICAS} {name}", lambda replicas=replicas: admit(arrival(), replicas, cached, Limits(), "i")
        )
    _print(f"admit of {_REPLICAS}, refused", lambda: admit(arrival(), full, cached, Limits(), "i"))


def _print_prefixes(name: str, prompt: list[int], source: random.Random) -> None:
    hashes, other = block_hashes(prompt), block_hashes([1, *prompt])
    index = PrefixIndex()
    for replica in range(_REPLICAS):
        index.note(f"replica-{replica}", hashes[: source.randrange(1, len(hashes))], _PLENTY)
    _print(f"block_hashes of {name}", lambda: block_hashes(prompt))
    _print(f"cached_tokens of {name}, all {_REPLICAS} hold some", lambda: index.cached_tokens(hashes))
    _print(f"cached_tokens of {name}, nobody holds any", lambda: index.cached_tokens(other))
    _print(f"note of {name}", lambda: index.note("replica-0", hashes, _PLENTY))


def _print_memory(source: random.Random) -> None:
    tracemalloc.start()
    index = PrefixIndex()
    while len(index) < 100_000:
        tokens = [source.randrange(150_000) for _ in range(131_072)]
        index.note(f"replica-{len(index) // 16_000}", block_hashes(tokens), _PLENTY)
        del tokens
    sys.stdout.write(f"{f'memory of {len(index)} blocks':44} {tracemalloc.get_traced_memory()[0] / 1e6:10.1f} MB\n")
    tracemalloc.stop()


def _print_observing() -> None:
    predicted = PredictedSpeed(prefill_tokens_per_s=1e4, decode_tokens_per_s=2500, full_batch=64, lone_step_s=0.01)
    meter, ticks = SpeedMeter(predicted), count()
    step = {"generated_tokens": 30, "prefilled_tokens": 99, "unfinished": 9}
    _print("SpeedMeter.observe", lambda: meter.observe(next(ticks) * 0.02, **step))


def _print(what: str, call: Callable[[], object]) -> None:
    timer = timeit.Timer(call, timer=time.process_time)
    number, _ = timer.autorange()
    number = max(1, number // 10)
    best_s = min(timer.repeat(20, number)) / number
    sys.stdout.write(f"{what:44} {best_s * 1e6:10.1f} us\n")


if __name__ == "__main__":
    main()
