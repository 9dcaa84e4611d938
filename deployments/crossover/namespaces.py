"""Two islands on one machine: network namespaces joined by a cable whose speed can be changed while it is in use.

    +-- archipelago-<pid>-0 --+                        +-- archipelago-<pid>-1 --+
    |  island0  10.88.0.1     | ===== veth pair =====  |  island0  10.88.0.2     |
    +-------------------------+   tc tbf at both ends  +-------------------------+

Everything that changes the machine is a list of commands, made by pure functions; `run_all` alone executes them. The
cable and what shapes it are in the namespaces and go with them. Needs root, and `ip` and `tc` (iproute2).
"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "archipelago"
DEVICE = "island0"  # the same name in both namespaces: GLOO_SOCKET_IFNAME is then the same too
ADDRESSES = ("10.88.0.1", "10.88.0.2")  # seen by nobody outside the two namespaces
_NAMESPACES_FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns only comes with Python 3.12

_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SPEED = re.compile(r"([1-9][0-9]{0,5})(kbit|mbit|gbit)")
UNSHAPED = "unshaped"

# The bucket is what may leave faster than the rate. A large one would let a whole decode step pass for nothing, so it
# holds one full packet, or what the rate gives in 0.25 ms: less, and timers that fire late would cost bandwidth.
_BURST_S = 250e-6
_PACKET_BYTES = 1600  # with its headers
# A cable loses nothing: the queue holds more than one collective ever puts into it.
_QUEUE_BYTES = 32 * 2**20


class SpeedError(ValueError):
    """Not a speed of a link. The message says what was given and what is accepted."""


class NamespaceError(Exception):
    """A command of `ip` or `tc` failed; the message holds the command and what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of the cable in each direction; `bits_per_s` is None for as fast as the machine copies."""

    name: str
    bits_per_s: int | None


def parse_speed(text: str) -> Speed:
    """Read `unshaped`, `1gbit`, `300mbit`. Raises `SpeedError`."""
    if text == UNSHAPED:
        return Speed(name=text, bits_per_s=None)
    match = _SPEED.fullmatch(text)
    if match is None:
        raise SpeedError(f"{text!r} is not a speed: give {UNSHAPED}, or a number and kbit, mbit or gbit, as 100mbit.")
    return Speed(name=text, bits_per_s=int(match[1]) * _UNITS[match[2]])


def names(pid: int) -> tuple[str, str]:
    """The namespaces of the process `pid`."""
    return f"{PREFIX}-{pid}-0", f"{PREFIX}-{pid}-1"


def build_commands(islands: Sequence[str]) -> list[list[str]]:
    """Make both namespaces and the cable between them."""
    first, second = islands
    commands = [["ip", "netns", "add", name] for name in islands]
    peer = ["peer", "name", DEVICE, "netns", second]
    commands.append(["ip", "-n", first, "link", "add", DEVICE, "type", "veth", *peer])
    for name, address in zip(islands, ADDRESSES, strict=True):
        commands += [
            ["ip", "-n", name, "link", "set", "lo", "up"],
            ["ip", "-n", name, "address", "add", f"{address}/24", "dev", DEVICE],
            ["ip", "-n", name, "link", "set", DEVICE, "up"],
        ]
    return commands


def remove_commands(islands: Sequence[str]) -> list[list[str]]:
    """Remove the namespaces, and with them the cable."""
    return [["ip", "netns", "delete", name] for name in islands]


def shape_commands(islands: Sequence[str], speed: Speed) -> list[list[str]]:
    """Give the cable a speed, in both directions; what was set before is replaced."""
    if speed.bits_per_s is None:
        return [["tc", "-n", name, "qdisc", "replace", "dev", DEVICE, "root", "noqueue"] for name in islands]
    bucket = ["burst", str(_burst_bytes(speed.bits_per_s)), "limit", str(_QUEUE_BYTES)]
    shape = ["root", "tbf", "rate", f"{speed.bits_per_s}bit", *bucket]
    return [["tc", "-n", name, "qdisc", "replace", "dev", DEVICE, *shape] for name in islands]


def _burst_bytes(bits_per_s: int) -> int:
    return max(_PACKET_BYTES, int(bits_per_s / 8 * _BURST_S))


def run_all(commands: Iterable[Sequence[str]]) -> None:
    """Execute commands in order.

    Raises:
        NamespaceError: one failed; those after it were not tried.
    """
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def missing() -> str | None:
    """What this machine lacks for emulated islands, as a sentence; None when it has all."""
    if os.geteuid() != 0:
        return "emulated islands need root: network namespaces are made and shaped"
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if lacking:
        return f"emulated islands need {' and '.join(lacking)}; install iproute2"
    try:
        with islands():
            return None
    except NamespaceError as error:
        return f"this machine cannot emulate islands: {error}"


@contextlib.contextmanager
def islands() -> Iterator[tuple[str, str]]:
    """Both islands, for as long as the context lasts.

    Raises:
        NamespaceError: they could not be made. Nothing is left.
    """
    pair = names(os.getpid())
    try:
        run_all(build_commands(pair))
        run_all(shape_commands(pair, Speed(name="1mbit", bits_per_s=10**6)))  # a kernel without tbf is found out here
        run_all(shape_commands(pair, Speed(name=UNSHAPED, bits_per_s=None)))
        yield pair
    finally:
        for command in remove_commands(pair):
            with contextlib.suppress(NamespaceError):  # it was never made
                run_all([command])


@contextlib.contextmanager
def inside(island: str) -> Iterator[None]:
    """Put this thread, and the threads and processes it starts from now on, on an island; come back at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    target = os.open(_NAMESPACES_FOLDER / island, os.O_RDONLY)
    try:
        _enter(libc, target)
        yield
    finally:
        _enter(libc, home)
        os.close(target)
        os.close(home)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
