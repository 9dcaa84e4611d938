"""How the command line `archipelago` introduces itself, and how it tells that it was not understood."""

import argparse
import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
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
_MOST_CHOICES = 8  # that an error lists where it can tell which one was meant
_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


def root_parser() -> argparse.ArgumentParser:
    """The parser that commands are added to; theirs are of the same kind."""
    root = _Parser(
        prog="archipelago",
        description="Serve large language models that are cut over several GPUs, on Ray and vLLM.",
        epilog=EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=len("    repartition  ")),
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
    """Tells a mistake in one line, not below a page of usage, and what was meant where that can be seen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", "parsers", _Commands)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse, but nothing may be left over: a command knows best what it accepts."""
        given: Sequence[str] = sys.argv[1:] if args is None else args
        if not given and any(isinstance(action, _Commands) for action in self._actions):
            self.print_help(sys.stderr)
            self.exit(self._code())
        found, left_over = super().parse_known_args(given, namespace)
        if left_over:
            self.error(f"unrecognized arguments: {' '.join(left_over)}{self._meant(left_over)}")
        return found, left_over

    def error(self, message: str) -> NoReturn:
        """End with one line. The names of an argument and its value are in `message`."""
        end = " " if message.endswith("?") else "; "
        self.exit(self._code(), f"{self.prog}: {message}{end}`{self.prog} --help` says what is accepted\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else [str(choice) for choice in action.choices]
        if choices is None or value in choices:
            return
        close = get_close_matches(str(value), choices, n=1)
        is_long = len(choices) > _MOST_CHOICES and close
        accepted = f"did you mean {close[0]}?" if is_long else f"give one of {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"{value!r} is not accepted; {accepted}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if action.type not in _NUMBERS:
                raise
            raise argparse.ArgumentError(
                action, f"{arg_string!r} is not accepted; give {_NUMBERS[action.type]}"
            ) from error

    def _meant(self, left_over: Iterable[str]) -> str:
        """The options that were mistyped, as they are written."""
        typed = [argument.partition("=")[0] for argument in left_over if argument.startswith("--")]
        close = [get_close_matches(option, self._option_string_actions, n=1) for option in typed]
        meant = [found[0] for found in close if found]
        return f"; did you mean {', '.join(meant)}?" if meant else ""

    def _code(self) -> int:
        # `plan` ends with 2 where there is no plan, `bench gate` with 1 where a limit is broken: neither is a typo.
        return 2 if self.prog.startswith("archipelago bench") else 1
