"""What Archipelago costs: its endpoint against vLLM's own API server, or another, with the same flags, in the same run.

The servers take turns (ours, peer, peer, ours, ...), so that a machine that grows slower or faster favours neither.
Each is started, warmed up, measured at every concurrency and stopped, and is alone while it is measured.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtests.closed_loop import Load, run_load
from loadtests.cpu_use import CpuUse, cpu_use, read_cpu
from loadtests.overhead_figures import FailedRequestsError, Figures, figures_of
from loadtests.overhead_report import OURS, Turn, document, print_report
from loadtests.peers import PEERS, PeerSetup, peer_setup
from loadtests.server_memory import memory_by_role
from loadtests.servers import SERVED_NAME, Server, ServerError, archipelago

CONCURRENCIES = (1, 8)
PROMPT_TOKENS = OUTPUT_TOKENS = 64
WARM_UP = Load(concurrency=8, requests=16, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS, seed=-1)
NARROWEST = 80  # columns; in fewer, words of the tables would be cut
DESCRIPTION = """\
Compare Archipelago's endpoint with vLLM's own API server, or with ray.serve.llm as it comes: same model, same engine
flags, one machine, and the same number of threads for each engine worker (one).

Load: streamed completions, 64 random token ids in, 64 tokens out, from 1 and from 8 clients in a closed loop.
Both servers are started and stopped in every round; each is alone while it is measured. Keep the machine quiet: the
column "other cores" is what neither the server nor its load used, and should be near 0.

Only tensor parallel shapes are offered: on a processor vLLM's own server cannot run pipeline stages, so for shapes such
as tp2pp2 there is nothing to compare with.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    arguments = parser().parse_args(argv)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, NARROWEST)
    load_average = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores; load average over the minute before: {load_average:.2f}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers must be ended, as they are after Ctrl-C
    try:
        turns = run_turns(arguments, console)
    except (ServerError, FailedRequestsError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"overhead: {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the servers have been ended")
        return 1
    print_report(turns, console)
    if arguments.out is not None:
        conditions = {"model": arguments.model, "shape": arguments.shape, "requests_per_client": arguments.requests}
        conditions |= {"cores": os.cpu_count(), "load_average_before": load_average}
        arguments.out.write_text(json.dumps(document(turns, conditions), indent=2) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m loadtests.overhead",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument(
        "--model", default="bench-100m", metavar="M", help="as for archipelago serve; default %(default)s"
    )
    root.add_argument("--shape", default="tp1", choices=("tp1", "tp2"), help="default %(default)s")
    root.add_argument("--peer", default="vLLM", choices=PEERS, help="what it is compared with; default %(default)s")
    root.add_argument("--rounds", default=3, type=_positive, metavar="N", help="default %(default)s")
    root.add_argument(
        "--requests",
        default=24,
        type=_positive,
        metavar="N",
        help="requests of each client at each concurrency in each round; default %(default)s",
    )
    root.add_argument("--out", type=Path, metavar="FILE", help="write what was measured as JSON")
    return root


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def order_of_turns(rounds: int, peer: str) -> list[tuple[int, str]]:
    """Round and server of each turn. Ours is the very first: it makes the model, and the peer copies its threads."""
    return [(index, server) for index in range(rounds) for server in ((peer, OURS) if index % 2 else (OURS, peer))]


def run_turns(arguments: argparse.Namespace, console: Console) -> list[Turn]:
    """Measure both servers in every round.

    Raises:
        ServerError: one did not start.
        FailedRequestsError: one did not answer every request.
    """
    tensor_parallel = int(arguments.shape.removeprefix("tp"))
    turns: list[Turn] = []
    setup: PeerSetup | None = None
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        for index, server_name in order_of_turns(arguments.rounds, arguments.peer):
            console.print(f"round {index + 1} of {arguments.rounds}: {server_name}")
            if server_name == OURS:
                with archipelago(arguments.model, tensor_parallel, folder) as server:
                    setup = setup or peer_setup(server)
                    turns.append(measure(server, server_name, index, arguments.requests))
            else:
                assert setup is not None, "ours went first"
                with PEERS[server_name](setup, tensor_parallel, folder) as server:
                    turns.append(measure(server, server_name, index, arguments.requests))
    return turns


def measure(server: Server, name: str, index: int, requests_per_client: int) -> Turn:
    """Warm one server up and measure it at every concurrency, with prompts that differ from round to round."""
    _run(server, WARM_UP)
    figures: dict[int, Figures] = {}
    cpu: dict[int, CpuUse] = {}
    processes = server.processes()
    for concurrency in CONCURRENCIES:
        load = Load(
            concurrency=concurrency,
            requests=concurrency * requests_per_client,
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
            seed=index,
        )
        before = read_cpu(processes)
        figures[concurrency] = _run(server, load)
        cpu[concurrency] = cpu_use(before, read_cpu(processes))
    return Turn(
        server=name,
        round=index,
        launch_to_token_s=server.launch_to_token_s,
        figures=figures,
        cpu=cpu,
        memory=memory_by_role(processes),
    )


def _run(server: Server, load: Load) -> Figures:
    return figures_of(asyncio.run(run_load(server.url, SERVED_NAME, load)), load.output_tokens)


if __name__ == "__main__":
    sys.exit(main())
