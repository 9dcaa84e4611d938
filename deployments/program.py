"""The program `archipelago`: the command line, which takes a second to load, and Ctrl-C at any moment of both."""

import signal

INTERRUPTED = 128 + signal.SIGINT  # what a shell says of a program that a signal has ended


def main() -> int:
    """Run the command of this process's arguments; returns the exit code."""
    try:
        from deployments import cli

        return cli.main()
    except KeyboardInterrupt:
        return INTERRUPTED
