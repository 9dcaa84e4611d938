import asyncio
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.peer import Batch, Frames
from deployments.wire import (
    MAX_FRAMES,
    MAX_GREETING_BYTES,
    MAX_MESSAGE_BYTES,
    WireError,
    greeted,
    pack,
    pack_batch,
    read_message,
    unpack_batch,
)

frames = st.lists(st.binary(max_size=40), max_size=6)
batches = st.builds(
    Batch,
    st.lists(frames, max_size=4).map(tuple),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=4).map(tuple),
)


def stream_of(data: bytes, *, ends: bool = True) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    if ends:
        reader.feed_eof()
    return reader


def read(data: bytes, messages: int = 1) -> list[Frames]:
    async def all_of_them() -> list[Frames]:
        reader = stream_of(data)
        return [await read_message(reader) for _ in range(messages)]

    return asyncio.run(all_of_them())


@given(st.lists(frames, min_size=1, max_size=4))
def test_messages_arrive_as_they_were_sent_one_behind_the_other(messages: list[Frames]) -> None:
    assert read(b"".join(map(pack, messages)), len(messages)) == messages


@given(batches)
def test_a_batch_is_understood_as_it_was_meant(batch: Batch) -> None:
    (received,) = read(pack_batch(batch))
    assert unpack_batch(received) == batch


def test_a_renewal_is_four_bytes() -> None:
    assert pack_batch(Batch()) == bytes(4)


@given(frames.filter(bool), st.data())
def test_a_message_that_breaks_off_is_no_message(message: Frames, data: st.DataObject) -> None:
    whole = pack(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(asyncio.IncompleteReadError):
        read(whole[:cut])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("!I", MAX_FRAMES + 1), f"a message of {MAX_FRAMES + 1} frames"),
        (struct.pack("!I", 2**32 - 1), "frames"),
        (struct.pack("!2I", 1, MAX_MESSAGE_BYTES + 1), f"a message of {MAX_MESSAGE_BYTES + 1} bytes"),
        (struct.pack("!5I", 4, *[2**28 + 1] * 4), "bytes"),
        (b"GET / HTTP/1.1\r\n", "frames"),
    ],
)
def test_what_announces_too_much_is_refused_before_it_is_read(data: bytes, words: str) -> None:
    async def scenario() -> None:
        with pytest.raises(WireError, match=words):
            await asyncio.wait_for(read_message(stream_of(data, ends=False)), 5)

    asyncio.run(scenario())


def header(**changes: Any) -> bytes:
    return json.dumps({"requests": [1], "aborts": []} | changes).encode()


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"{}",
        b"[" * 100_000,
        header(requests=None),
        header(requests=["1"]),
        header(requests=[0.5, 0.5]),
        header(requests=[2, -1]),
        header(requests=[2]),
        header(requests=[]),
        header(aborts=None),
        header(aborts=7),
    ],
    ids=lambda first: first[:40],
)
def test_a_batch_with_a_header_that_makes_no_sense_is_refused(first: bytes) -> None:
    with pytest.raises(WireError):
        unpack_batch([first, b"request"])


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4) | st.lists(st.just(header()), max_size=3))
def test_whatever_comes_is_a_batch_or_refused(received: Frames) -> None:
    try:
        batch = unpack_batch(received)
    except WireError:
        return
    assert [part for request in batch.requests for part in request] == received[1:]


def greet(data: bytes, *, ends: bool = True) -> str:
    async def meet() -> str:
        return await greeted(stream_of(data, ends=ends), "secret")

    return asyncio.run(meet())


def test_a_greeting_tells_the_name() -> None:
    assert greet(pack([b"ingress-1", b"secret"])) == "ingress-1"


@pytest.mark.parametrize(
    "message",
    [[], [b"ingress"], [b"ingress", b""], [b"ingress", b"Secret"], [b"ingress", b"secret", b""], [b"ingress", b"\xff"]],
    ids=repr,
)
def test_who_does_not_know_the_secret_is_refused(message: Frames) -> None:
    with pytest.raises(WireError, match="another fleet"):
        greet(pack(message))


@pytest.mark.parametrize("data", [struct.pack("!2I", 1, MAX_GREETING_BYTES + 1), struct.pack("!I", MAX_FRAMES)])
def test_a_stranger_may_not_fill_the_memory(data: bytes) -> None:
    with pytest.raises(WireError):
        greet(data, ends=False)
