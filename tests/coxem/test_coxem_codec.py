"""The COXEM dialect's bytes: in whatever pieces they come they mean the same, and where they cannot, a test says so."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus_devices.sem.coxem_codec import GREETING, PORT, CoxemCodec, on_wire
from mm_autofocus_devices.transport import Kind, Message, ProtocolError

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol-coxem.md").read_text(encoding="utf-8")
CODEC = CoxemCodec()
HELLO = "".join(GREETING).encode("ascii")

numbers = st.floats(-99_999, 99_999, allow_nan=False).map(on_wire)
orders = st.one_of(
    st.builds(
        lambda wd, mag: Message("WDMAG", {"working_distance_mm": wd, "magnification": mag}), numbers.map(abs), numbers
    ),
    st.builds(lambda x, y: Message("POSITION", {"x": x, "y": y}), numbers, numbers),
)
sessions = st.lists(st.lists(orders, max_size=4), min_size=1, max_size=3).map(
    lambda parts: [m for part in parts for m in (*map(Message, GREETING), *part, Message("FINISH"))]
)
korean = st.text("가나다라마바사아자차카타파하 ABC012.,:", min_size=1, max_size=40)


def encoded(messages: Iterable[Message]) -> bytes:
    return b"".join(CODEC.encode(message) for message in messages)


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def decode(parts: Iterable[bytes], *, silences: bool = False) -> list[Message]:
    """Feed pieces one after the other; between them is silence or is not, after the last there is."""
    decoder = CODEC.decoder(server=True)
    messages: list[Message] = []
    for part in parts:
        messages += decoder.feed(part)
        messages += decoder.flush() if silences else []
    messages += decoder.flush()
    assert not decoder.busy
    return messages


def test_the_bytes_of_every_request() -> None:
    assert encoded(map(Message, GREETING)) == b"Connected.COMM.START.READY"
    order = Message("WDMAG", {"working_distance_mm": 4.5005, "magnification": 1000.0})
    assert CODEC.encode(order) == b"WDMAG,4.5005,1000"
    assert CODEC.encode(Message("POSITION", {"x": -0.05, "y": 1e-9})) == b"POSITION,-0.05,0"
    assert CODEC.encode(Message("FINISH")) == b"FINISH"
    assert CODEC.encode(Message("", {"text": "완료"}, kind=Kind.REPLY)) == b"\xbf\xcf\xb7\xe1"
    assert not CODEC.identifies


def test_the_document_tells_the_same() -> None:
    for found in re.findall(r"^\| `([^`]+)` \| `((?:[0-9a-f]{2} ?)+)` \|", DOCUMENT, re.MULTILINE):
        text, data = found
        assert text.encode("euc-kr") == bytes.fromhex(data), text
    assert "`WDMAG,4.5,1000`" in DOCUMENT
    assert str(PORT) in DOCUMENT


@given(sessions, st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split_and_any_coalescing_mean_the_same(session: list[Message], cuts: list[int]) -> None:
    assert decode(pieces(encoded(session), cuts)) == session


@given(sessions)
def test_so_does_every_byte_alone(session: list[Message]) -> None:
    assert decode(bytes([byte]) for byte in encoded(session)) == session


def ambiguous(data: bytes) -> set[int]:
    """Places where silence ends a number that has not ended: what is before it is a whole request already."""
    inside = re.compile(rb"(?:WDMAG|POSITION),-?[0-9.]+,-?[0-9]+(?:\.[0-9]+)?$")
    return {cut for cut in range(len(data)) if data[cut : cut + 1] in b"0123456789." and inside.search(data[:cut])}


@given(sessions, st.lists(st.integers(0, 10_000), max_size=8))
def test_silence_changes_nothing_but_within_the_last_number(session: list[Message], cuts: list[int]) -> None:
    data = encoded(session)
    unsafe = ambiguous(data)
    safe = [cut for cut in (c % (len(data) + 1) for c in cuts) if cut not in unsafe]
    assert decode(pieces(data, safe), silences=True) == session


@pytest.mark.parametrize("rest", [b"00", b"0WDMAG,10,500", b".5"])
def test_ambiguity_silence_within_the_last_number_cuts_it_and_the_rest_ends_the_connection(rest: bytes) -> None:
    decoder = CODEC.decoder(server=True)
    decoder.feed(HELLO + b"WDMAG,10,5")
    assert [m.fields["magnification"] for m in decoder.flush()] == [5.0]
    with pytest.raises(ProtocolError, match="does not begin any"):
        decoder.feed(rest)


@pytest.mark.parametrize(
    "begun", [b"REA", b"W", b"WDMAG", b"WDMAG,", b"WDMAG,1", b"WDMAG,1.", b"WDMAG,1,", b"WDMAG,1,-"]
)
def test_silence_completes_nothing_that_lacks_more_than_its_end(begun: bytes) -> None:
    decoder = CODEC.decoder(server=True)
    decoder.feed(HELLO if begun[:1] == b"W" else b"Connected.COMM.START.")
    decoder.feed(begun)
    assert decoder.flush() == []
    assert decoder.busy


@pytest.mark.parametrize(
    "data",
    [
        b"WDMAG,10,500FINISH", b"READY", HELLO + b"READY", HELLO + b"FINISHWDMAG,1,1F", b"Connected.READY",
        HELLO + b"WDMAG,1e3,5", HELLO + b"WDMAG,nan,5", HELLO + b"WDMAG,10,500\r\n", HELLO + b"wdmag,1,5",
        HELLO + b"WDMAG,1234567890123,5", HELLO + b"WDMAG,.5,5", HELLO + b"WDMAG,1.2.3,4", b"GET / HTTP/1.1\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_or_out_of_order_ends_the_connection(data: bytes) -> None:
    decoder = CODEC.decoder(server=True)
    with pytest.raises(ProtocolError):
        decoder.feed(data)
    with pytest.raises(ProtocolError):
        decoder.feed(HELLO)


@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_noise_is_refused_or_waited_for_and_never_kept(parts: list[bytes], server: bool) -> None:
    decoder = CODEC.decoder(server=server)
    try:
        for part in parts:
            decoder.feed(part)
            assert not server or len(decoder._buffer) < 64  # type: ignore[union-attr]
            decoder.flush()
    except ProtocolError:
        pass


@given(korean, st.lists(st.integers(0, 200), max_size=10))
def test_a_reply_in_any_pieces_is_one_reply(text: str, cuts: list[int]) -> None:
    decoder = CODEC.decoder(server=False)
    for part in pieces(text.encode("euc-kr"), cuts):
        assert decoder.feed(part) == []
    assert decoder.flush() == [Message("", {"text": text}, kind=Kind.REPLY)]
    assert decoder.flush() == []


def test_ambiguity_two_replies_without_silence_are_one_and_one_with_silence_is_two() -> None:
    decoder = CODEC.decoder(server=False)
    decoder.feed("완료".encode("euc-kr") * 2)
    assert [m.text("text") for m in decoder.flush()] == ["완료완료"]
    decoder.feed(b"\xbf\xcf\xb7")
    assert [m.text("text") for m in decoder.flush()] == ["완\N{REPLACEMENT CHARACTER}"]
    assert not decoder.busy


def test_a_reply_that_is_no_text_or_too_long_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no euc-kr"):
        CODEC.decoder(server=False).feed(b"\xff\xff\xff")
    decoder = CODEC.decoder(server=False)
    for _ in range(4):
        decoder.feed(b"x" * 1024)
    with pytest.raises(ProtocolError, match="more than 4096"):
        decoder.feed(b"x")


def test_what_cannot_be_said_is_refused() -> None:
    for message in (
        Message("STIGMATOR", {"x": 1.0}),
        Message("WDMAG", {"working_distance_mm": float("nan"), "magnification": 1.0}),
        Message("WDMAG", {"working_distance_mm": 1e15, "magnification": 1.0}),
        Message("WDMAG", {"working_distance_mm": 10.0}),
    ):
        with pytest.raises(ProtocolError):
            CODEC.encode(message)
