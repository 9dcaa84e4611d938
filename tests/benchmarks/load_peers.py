"""The load client beside others, at the same endpoint and load: python tests/benchmarks/load_peers.py [--guidellm PATH]

Serves a model as `make bench` does, then lets `archipelago load`, vLLM's `bench serve` and, where its command is given,
guidellm ask it in turns: evenly spaced requests of one length. Printed are the medians of the rounds and their ratio
to ours.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from loadtests.plan import milliseconds
from loadtests.records import read_run
from loadtests.report import RESULT_FILE, read_result, write_report
from loadtests.run import run
from loadtests.scenario import Scenario
from loadtests.servers import SERVED_NAME, archipelago

OURS = "archipelago"
TOKENS = 64
MODEL = "bench-100m"
# `vllm bench serve` itself: the `vllm` command asks for the metadata of a package that a CPU build does not have.
VLLM = """\
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
EVENLY = 1e6  # as vLLM counts: shape of the Gamma distribution of gaps
FIGURES = ("TTFT p50, ms", "TTFT p99, ms", "TPOT p50, ms", "TPOT p99, ms", "requests/s", "output tokens/s")
RANKS = ("p50", "p99")
Figures = Mapping[str, float]


def main() -> None:
    """Measure and print."""
    arguments = parser().parse_args()
    _print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.url:
            found = measured(arguments.url, arguments, folder)
        else:
            with archipelago(MODEL, 1, folder) as server:
                found = measured(server.url, arguments, folder)
    _print(
        f"load average after it {os.getloadavg()[0]:.2f}; medians of {arguments.rounds} rounds, with theirs to ours:"
    )
    ours = found[OURS]
    for figure in FIGURES:
        own = median(each[figure] for each in ours)
        line = f"{figure:<16} {OURS} {own:8.2f}"
        for client, rounds in found.items():
            if client != OURS:
                theirs = median(each[figure] for each in rounds)
                by_round = [each[figure] / mine[figure] for each, mine in zip(rounds, ours, strict=True)]
                line += f"   {client} {theirs:8.2f} ({theirs / own:.3f}; {min(by_round):.3f} to {max(by_round):.3f})"
        _print(line)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root.add_argument("--guidellm", type=Path, metavar="PATH", help="its command, in an environment of its own")
    root.add_argument("--url", help="a server that runs already, with --served-model-name bench")
    root.add_argument("--rate", type=float, default=1.0, help="requests per second; default %(default)s")
    root.add_argument("--requests", type=int, default=40, help="of each client in each round; default %(default)s")
    root.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    return root


def measured(url: str, arguments: argparse.Namespace, folder: Path) -> dict[str, list[Figures]]:
    """The figures of every client and round. Who begins changes from round to round; one round before them warms up."""
    tokenizer = httpx.get(f"{url}/v1/models", trust_env=False).raise_for_status().json()["data"][0]["root"]
    clients: dict[str, Callable[[int], Figures]] = {
        OURS: lambda seed: ours(url, arguments, seed, folder / f"ours-{seed}"),
        "vllm": lambda seed: vllm(url, tokenizer, arguments, seed, folder / f"vllm-{seed}.json"),
    }
    if arguments.guidellm:
        clients["guidellm"] = lambda seed: guidellm(url, tokenizer, arguments, seed, folder / f"guidellm-{seed}.json")
    ours(url, arguments, arguments.rounds, folder / "warm-up")
    found: dict[str, list[Figures]] = {name: [] for name in clients}
    for seed in range(arguments.rounds):
        for name in sorted(clients, reverse=bool(seed % 2)):
            found[name].append(clients[name](seed))
            _print(f"round {seed + 1}: {name}: { ({key: round(value, 2) for key, value in found[name][-1].items()}) }")
    return found


def ours(url: str, arguments: argparse.Namespace, seed: int, folder: Path) -> Figures:
    """What `archipelago load` says, but for TTFT: the others know no schedule, so here it counts from sending."""
    length = {"kind": "fixed", "tokens": TOKENS}
    fields = {"name": "peers", "url": url, "seed": seed, "duration_s": arguments.requests / arguments.rate}
    arrivals = {"kind": "constant", "rate": arguments.rate}
    lengths = {"input": length, "output": length}
    scenario = Scenario.model_validate({**fields, "greedy": True, "arrivals": arrivals, "lengths": lengths})
    records = run(scenario, folder)
    document = read_result(write_report(records, folder).with_name(RESULT_FILE))
    if document["invalid"]:
        _print(f"  {OURS} says of itself: {'; '.join(document['invalid'])}")
    whole = document["all"]
    assert whole["ok"] == arguments.requests, document["outcomes"]
    found = [(record.first_s, record.sent_s) for record in read_run(records).records]
    ttft_ms = milliseconds(
        [first_s - sent_s for first_s, sent_s in found if first_s is not None and sent_s is not None]
    )
    times = [*(ttft_ms[rank] for rank in RANKS), *(1e3 * whole["tpot_s"][rank] for rank in RANKS)]
    return _figures(*times, whole["requests_per_s"], whole["output_tokens_per_s"])


def vllm(url: str, tokenizer: str, arguments: argparse.Namespace, seed: int, path: Path) -> Figures:
    """What `vllm bench serve` says."""
    where = ["--base-url", url, "--model", SERVED_NAME, "--tokenizer", tokenizer, "--backend", "openai"]
    load = ["--dataset-name", "random", "--random-input-len", TOKENS, "--random-output-len", TOKENS, "--ignore-eos"]
    load += ["--num-prompts", arguments.requests, "--request-rate", arguments.rate, "--burstiness", EVENLY]
    told = ["--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,99", "--disable-tqdm"]
    told += ["--save-result", "--result-dir", path.parent, "--result-filename", path.name]
    _run([sys.executable, "-c", VLLM, *where, *load, *told, "--seed", seed, "--temperature", 0])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["completed"] == arguments.requests, found
    times = [found[f"{rank}_{key}_ms"] for key in ("ttft", "tpot") for rank in RANKS]
    return _figures(*times, found["request_throughput"], found["output_throughput"])


def guidellm(url: str, tokenizer: str, arguments: argparse.Namespace, seed: int, path: Path) -> Figures:
    """What guidellm says. What it calls inter-token latency is our TPOT."""
    command = [arguments.guidellm, "run", "--disable-console", "--seed", f"kind=static,value={seed}"]
    command += ["--backend", f"kind=openai_http,target={url},model={SERVED_NAME},request_format=/v1/completions"]
    command += ["--profile", f"kind=constant,rate={arguments.rate}"]
    command += ["--constraint", f"kind=max_requests,count={arguments.requests}"]
    command += ["--tokenizer", f"kind=hf_auto,model={tokenizer}", "--output", f"kind=json,path={path}"]
    _run([*command, "--data", f"kind=synthetic_text,prompt_tokens={TOKENS},output_tokens={TOKENS}"])
    (found,) = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    metrics = {
        name: values["successful"] for name, values in found["metrics"].items() if values and "successful" in values
    }
    keys = ("time_to_first_token_ms", "inter_token_latency_ms")
    times = [metrics[key]["percentiles"][rank] for key in keys for rank in RANKS]
    return _figures(*times, metrics["requests_per_second"]["mean"], metrics["output_tokens_per_second"]["mean"])


def _figures(*values: float) -> Figures:
    return dict(zip(FIGURES, values, strict=True))


def _run(command: list[Any]) -> None:
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
