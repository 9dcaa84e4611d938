"""A server that leaves to others at its port: nobody who is there, or just comes, is turned away."""

import collections
import contextlib
import socket
import time

import pytest
from access_builders import DEADLINE_S, Echo, serving

from deployments.access.settings import Access
from deployments.access.steering import steer, steer_no_more
from deployments.ingress import listening_socket

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(connection: socket.socket) -> bytes:
    """Until nothing more is to come of it."""
    received = b""
    while not received.endswith((b"0\r\n\r\n", b"\r\n\r\n0")) and (data := connection.recv(65536)):
        received += data
    return received


def test_who_is_connected_is_answered_and_told_that_it_was_the_last_time() -> None:
    app = Echo()
    with listening_socket("127.0.0.1", 0) as listener, serving(app, Access(), listener) as close:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=DEADLINE_S) as one:
            one.sendall(GET)
            assert b"connection: close" not in answer(one)
            thread = close()
            wait_until_refused(address)
            one.sendall(GET)
            told = answer(one)
            assert (told.startswith(b"HTTP/1.1 200 OK"), b"connection: close" in told) == (True, True)
            assert one.recv(1) == b"", "closed"
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_stream_goes_on_to_its_end_and_the_server_waits_for_it() -> None:
    with (
        listening_socket("127.0.0.1", 0) as listener,
        serving(Echo(events=30, pace_s=0.02), Access(), listener) as close,
        socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) as one,
    ):
        one.sendall(GET)
        begun = one.recv(1000)
        thread = close()
        whole = begun + answer(one)
        assert whole.count(b"data: ") == 30
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_who_keeps_a_connection_open_for_nothing_does_not_keep_the_server() -> None:
    with (
        listening_socket("127.0.0.1", 0) as listener,
        serving(Echo(), Access(), listener) as close,
        socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) as one,
    ):
        one.sendall(GET)
        answer(one)
        thread = close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def wait_until_refused(address: tuple[str, int]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(address, timeout=DEADLINE_S).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    raise AssertionError("it still listens")


# --- which of several sockets new connections go to ------------------------------------------------------------------


def accepted(listeners: list[socket.socket], count: int) -> collections.Counter[int]:
    """Connect so often; which listeners it went to."""
    found: collections.Counter[int] = collections.Counter()
    address = next(one.getsockname() for one in listeners if one.fileno() >= 0)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(address, timeout=DEADLINE_S))
        for index, listener in enumerate(listeners):
            with contextlib.suppress(BlockingIOError, OSError):
                while True:
                    listener.accept()[0].close()
                    found[index] += 1
    return found


@pytest.fixture
def listeners() -> list[socket.socket]:
    first = listening_socket("127.0.0.1", 0)
    every = [first, *(listening_socket(*first.getsockname()) for _ in range(3))]
    for one in every:
        one.setblocking(False)
    return every


def test_new_connections_go_to_those_that_stay_even_while_the_others_listen(listeners: list[socket.socket]) -> None:
    steer(listeners[0], first=2, count=2)
    found = accepted(listeners, 100)
    assert (set(found), found.total()) == ({2, 3}, 100)
    for leaving in listeners[:2]:
        leaving.close()
    assert accepted(listeners, 100).total() == 100
    steer_no_more(listeners[2])
    assert set(accepted(listeners, 100)) == {2, 3}
    for staying in listeners[2:]:
        staying.close()


def test_numbers_that_nobody_has_send_connections_where_they_would_have_gone(listeners: list[socket.socket]) -> None:
    steer(listeners[0], first=7, count=3)
    found = accepted(listeners, 200)
    assert (set(found), found.total()) == ({0, 1, 2, 3}, 200)
    for one in listeners:
        one.close()


def test_a_kernel_that_cannot_is_no_reason_to_stay(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX) as unable:
        steer(unable, first=1, count=1)
        steer_no_more(unable)
    assert "connections that begin while this ingress leaves may be reset" in caplog.text
