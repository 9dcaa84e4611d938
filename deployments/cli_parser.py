"""How the command line `archipelago` introduces itself, and how it tells that it was not understood."""

import argparse
import importlib.metadata
from typing import Any, NoReturn

EPILOG = """\
examples:
  archipelago serve                               a tiny model on a simulated cluster of this machine
  archipelago serve --model Qwen/Qwen3-0.6B       the same cluster, another model
  archipelago serve my.yaml --block               as configured; stay in the foreground
  archipelago check my.yaml                       find every mistake without starting anything
  archipelago check --fields                      every field of a configuration file
  archipelago repartition tiny-llama tp2          cut what is served anew, without losing a request
  archipelago plan deepseek-ai/DeepSeek-V3 --cluster '4x dgx-h200' --rate 20/s --tpot 40ms
                                                  how to cut a model, how many replicas, and why
  archipelago scaling meta-llama/Llama-3.1-70B --cluster '4x dgx-h100' --html scaling.html
                                                  what more GPUs bring, and where it turns worse
"""


def root_parser() -> argparse.ArgumentParser:
    """The parser that commands are added to; theirs are of the same kind."""
    root = _Parser(
        prog="archipelago",
        description="Serve large language models that are cut over several GPUs, on Ray and vLLM.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"archipelago {importlib.metadata.version('archipelago')}")
    return root


class _Commands(argparse._SubParsersAction):  # type: ignore[type-arg]  # it takes no argument when it runs
    """Each command introduces itself by what the list of all commands says of it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        summary = options["help"]
        options = {"description": f"{summary[0].upper()}{summary[1:]}.", **options}
        command: argparse.ArgumentParser = super().add_parser(name, **options)
        return command


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, not below a page of usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", "parsers", _Commands)

    def error(self, message: str) -> NoReturn:
        # `plan` ends with 2 where there is no plan, `bench gate` with 1 where a limit is broken: neither is a typo.
        code = 2 if self.prog.startswith("archipelago bench") else 1
        self.exit(code, f"{self.prog}: {message}; `{self.prog} --help` says what is accepted\n")
