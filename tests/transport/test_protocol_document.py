"""docs/protocol.md says what the bytes are: its example is what the codec makes, its numbers are those of the code."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from mm_autofocus_devices.sem import protocol
from mm_autofocus_devices.transport import FrameCodec, Message, framing

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLE = Message("set", {"working_distance_um": 4500.5}, session=0x0102030405060708, number=3)


def example() -> bytes:
    found = re.search(r"```hex\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return bytes.fromhex(found.group(1))


def test_the_example_is_what_the_codec_makes_and_reads() -> None:
    codec = FrameCodec()
    assert example() == codec.encode(EXAMPLE)
    assert codec.decoder(server=True).feed(example()) == [EXAMPLE]


def test_the_example_can_be_read_with_the_table_alone() -> None:
    data = example()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([a-z ]+?)(?: \*[HP]\*)? \|", TEXT, re.MULTILINE)
    fields = {name: int.from_bytes(data[int(at) : int(at) + int(size)], "big") for at, size, name in rows}
    assert fields["magic"] == int.from_bytes(b"MMAF", "big")
    assert (fields["version"], fields["kind"], fields["reserved"]) == (1, 1, 0)
    assert (fields["session"], fields["number"]) == (EXAMPLE.session, EXAMPLE.number)
    end = 36 + fields["header length"] + fields["payload length"]
    assert data[36 : 36 + fields["header length"]] == b'{"name": "set", "fields": {"working_distance_um": 4500.5}}'
    assert int.from_bytes(data[end:], "big") == zlib.crc32(data[:end])
    assert len(data) == end + 4


def test_the_limits_and_names_are_those_of_the_code() -> None:
    for number in (framing.MAX_HEADER, framing.MAX_PAYLOAD, protocol.CODEC.max_payload):
        assert f"{number:,}" in TEXT
    for name in protocol.State.__annotations__:
        assert f"`{name}`" in TEXT, name
