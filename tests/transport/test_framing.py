"""The native codec: what goes in comes out, in whatever pieces, and nothing is allocated for a promise."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus_devices.transport import FrameCodec, Kind, Message, ProtocolError
from mm_autofocus_devices.transport.framing import PREFIX

SCALARS = (
    st.text(max_size=20)
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)
FIELDS = st.dictionaries(st.text(max_size=10), SCALARS | st.lists(SCALARS, max_size=5), max_size=5)
IDENTITIES = st.integers(0, (1 << 64) - 1)
MESSAGES = st.builds(
    Message, st.text(max_size=10), FIELDS, st.binary(max_size=300), st.just(Kind.REQUEST), IDENTITIES, IDENTITIES
)


@settings(max_examples=40)
@given(st.lists(MESSAGES, max_size=3), st.data())
def test_messages_come_out_whole_whatever_the_pieces(messages: list[Message], data: Any) -> None:
    stream = b"".join(map(FrameCodec().encode, messages))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8)))
    decoder = FrameCodec().decoder(server=True)
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        out += decoder.feed(stream[start:end])
    assert out == messages
    assert not decoder.busy
    assert decoder.flush() == []


@settings(max_examples=60)
@given(MESSAGES, st.integers(0), st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(message: Message, place: int, bit: int) -> None:
    stream = bytearray(FrameCodec().encode(message))
    stream[place % len(stream)] ^= 1 << bit
    decoder = FrameCodec().decoder(server=True)
    try:
        assert decoder.feed(bytes(stream)) == []  # a length that grew: the rest is waited for
        assert decoder.busy
    except ProtocolError:
        pass


def test_nothing_is_allocated_for_what_a_frame_announces() -> None:
    codec = FrameCodec()
    promises = [
        PREFIX.pack(b"MMAF", 1, 1, 0, 10, 10 * 10**9, 1, 1),
        PREFIX.pack(b"MMAF", 1, 1, 0, (1 << 32) - 1, 0, 1, 1),
        PREFIX.pack(b"MMAF", 1, 1, 0, 10, (1 << 64) - 1, 1, 1),
    ]
    tracemalloc.start()
    try:
        for promise in promises:
            with pytest.raises(ProtocolError, match="over the limits"):
                codec.decoder(server=True).feed(promise)
        waiting = codec.decoder(server=True)
        assert waiting.feed(PREFIX.pack(b"MMAF", 1, 1, 0, 10, codec.max_payload, 1, 1)) == []
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"X", b"MM\x00", b"MMAG", b"GET / HTTP/1.1\r\n"])
def test_nonsense_is_refused_at_its_first_byte(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="must begin with"):
        FrameCodec().decoder(server=True).feed(data)


@pytest.mark.parametrize(
    ("key", "read", "value"),
    [
        ("n", "real", "1.0"), ("n", "real", True), ("n", "real", None), ("n", "whole", 1.0), ("n", "whole", True),
        ("n", "text", 1), ("n", "truth", 1), ("n", "real", [1.0]),
    ],
)  # fmt: skip
def test_fields_are_of_the_kind_that_is_asked_for(key: str, read: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=f"field {key!r} of message 'm' must be"):
        getattr(Message("m", {key: value}), read)(key)
    with pytest.raises(ProtocolError, match="has no field"):
        getattr(Message("m", {}), read)(key)


def test_lists_of_whole_numbers() -> None:
    assert Message("m", {"roi": [1, 2]}).wholes("roi", 2) == (1, 2)
    for wrong in ([1], [1, 2.0], [1, True], 12, "12", None):
        with pytest.raises(ProtocolError):
            Message("m", {"roi": wrong}).wholes("roi", 2)
