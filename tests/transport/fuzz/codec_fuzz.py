"""Feeds the native codec nonsense: ``python codec_fuzz.py --inputs 1000000 --seed 0``; prints JSON, fails loudly.

A third of the inputs are whole messages in random pieces, which must come out as they went in. The others are damaged:
noise, flipped bits, cut, repeated and spliced frames, tampered lengths, and headers that are nonsense under a correct
checksum. Each must yield messages that can be encoded again, or `ProtocolError`, and nothing else; the peak of the
resident memory must stay where it was after a warm-up.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable

from mm_autofocus_devices.transport import FrameCodec, Kind, Message, ProtocolError
from mm_autofocus_devices.transport.framing import PREFIX, TRAILER

CODEC = FrameCodec(max_header=4096, max_payload=1 << 16)
HANG_S = 30.0
"""An input that takes longer ends the process, with a traceback."""
WARM_UP = 0.2
"""Share of the inputs after which memory must not grow any more."""

_NASTY_HEADERS = (
    b"", b"{", b"null", b"[]", b"{}", b'""', b"\xff\xfe", b'{"name": 1, "fields": {}}', b'{"name": "a"}',
    b'{"name": "a", "fields": []}', b'{"name": "a", "fields": {"x": NaN}}', b'{"name": "a", "fields": {"x": 1e999}}',
    b'{"name": "a", "fields": {"x": {"y": 1}}}', b'{"name": "a", "fields": {"x": [[1]]}}', b"[" * 4000, b'{"a":' * 700,
    b'{"name": "a", "fields": {"x": ' + b"9" * 4000 + b"}}", b'{"name": "\\ud800", "fields": {"\\udfff": "\\ud800"}}',
    b'{"name": "a", "fields": {' + b",".join(b'"%d": 0' % i for i in range(400)) + b"}}",
    b'{"name": "a", "fields": {"x": 1, "x": 2}}', b'{"name": "a", "fields": {"x": -Infinity}, "more": 1}',
)  # fmt: skip


def frame(header: bytes, payload: bytes = b"", kind: int = 1, session: int = 1, number: int = 1) -> bytes:
    """Return a frame with a correct checksum around any header."""
    body = PREFIX.pack(b"MMAF", 1, kind, 0, len(header), len(payload), session, number) + header + payload
    return body + TRAILER.pack(zlib.crc32(body))


class Inputs:
    """Makes inputs, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.kinds: list[Callable[[], bytes]] = [
            self.noise, self.flipped, self.cut, self.repeated, self.spliced, self.tampered, self.nasty, self.grown,
        ]  # fmt: skip

    def message(self) -> Message:
        """Return a random message."""
        r = self._random
        values = (
            lambda: r.randrange(-(1 << 62), 1 << 62), lambda: r.uniform(-1e9, 1e9), lambda: r.choice((True, None)),
            lambda: "".join(chr(r.choice((65, 0xE9, 0x3B1, 0x1F52C, 0xD800))) for _ in range(r.randrange(8))),
            lambda: [r.randrange(100) for _ in range(r.randrange(5))],
        )  # fmt: skip
        fields = {f"f{i}": r.choice(values)() for i in range(r.randrange(5))}
        payload = r.randbytes(r.choice((0, 0, 1, 17, 300)))
        return Message(
            r.choice(("set", "scan", "")), fields, payload, Kind.REQUEST, r.getrandbits(64), r.getrandbits(64)
        )

    def whole(self) -> tuple[list[Message], bytes]:
        """Return messages and their bytes."""
        messages = [self.message() for _ in range(self._random.choice((1, 1, 1, 2, 4)))]
        return messages, b"".join(map(CODEC.encode, messages))

    def pieces(self, data: bytes) -> list[bytes]:
        """Return the bytes in random pieces."""
        r = self._random
        if r.random() < 0.5 or len(data) < 2:
            return [data]
        cuts = sorted(r.randrange(1, len(data)) for _ in range(r.choice((1, 2, 5))))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def noise(self) -> bytes:
        """Random bytes, sometimes behind the right magic."""
        return self._random.choice((b"", b"MMAF", b"MMAF\x01\x01\x00\x00")) + self._random.randbytes(
            self._random.randrange(200)
        )

    def flipped(self) -> bytes:
        """A frame with flipped bits."""
        data = bytearray(self.whole()[1])
        for _ in range(self._random.choice((1, 1, 3, 20))):
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(data)

    def cut(self) -> bytes:
        """A frame without its end, or without its beginning."""
        data = self.whole()[1]
        at = self._random.randrange(len(data))
        return data[:at] if self._random.random() < 0.5 else data[at:]

    def repeated(self) -> bytes:
        """A frame with a part of it twice."""
        data = self.whole()[1]
        a, b = sorted(self._random.randrange(len(data) + 1) for _ in range(2))
        return data[:b] + data[a:]

    def spliced(self) -> bytes:
        """The beginning of one frame and the end of another."""
        one, two = self.whole()[1], self.whole()[1]
        return one[: self._random.randrange(len(one) + 1)] + two[self._random.randrange(len(two) + 1) :]

    def tampered(self) -> bytes:
        """A frame with other lengths, up to 2**64 - 1."""
        data = bytearray(self.whole()[1])
        r = self._random
        if r.random() < 0.5:
            struct.pack_into(">Q", data, 12, r.choice((10 * 10**9, (1 << 64) - 1, 1 << 16, (1 << 16) + 1, 5)))
        else:
            struct.pack_into(">I", data, 8, r.choice(((1 << 32) - 1, 4096, 4097, 0, 3)))
        return bytes(data)

    def nasty(self) -> bytes:
        """A header that is nonsense, under a correct checksum."""
        header = self._random.choice(_NASTY_HEADERS)[: CODEC.max_header]
        return frame(header, self._random.randbytes(self._random.choice((0, 9))))

    def grown(self) -> bytes:
        """A long stream that never completes a frame."""
        return frame(b"{}", bytes(1 << 16))[: self._random.randrange(36, 1 << 16)]


def resident_kib() -> int:
    """Return the peak of the resident memory so far, KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def run(inputs: int, seed: int) -> dict[str, object]:
    """Feed that many inputs; raise AssertionError at the first that is not treated as it should be."""
    source, outcomes = Inputs(seed), Counter[str]()
    warm = 0
    slowest = 0.0
    for index in range(inputs):
        if index == int(WARM_UP * inputs):
            warm = resident_kib()
        if index % 1000 == 0:
            faulthandler.dump_traceback_later(HANG_S, exit=True)
        decoder = CODEC.decoder(server=True)
        if index % 3 == 0:
            messages, data = source.whole()
            came = [message for piece in source.pieces(data) for message in decoder.feed(piece)]
            assert came == messages, (index, messages, came)
            assert not decoder.busy
            outcomes["whole"] += 1
            continue
        make = source.kinds[index % len(source.kinds)]
        data = make()
        began = time.perf_counter()
        try:
            for piece in source.pieces(data):
                for message in decoder.feed(piece):
                    assert CODEC.decoder(server=True).feed(CODEC.encode(message)) == [message]
                    outcomes["a message all the same"] += 1
            outcomes["waits for more" if decoder.busy else "consumed"] += 1
        except ProtocolError:
            outcomes["refused"] += 1
            try:
                decoder.feed(b"")
            except ProtocolError:
                pass
            else:
                raise AssertionError(f"input {index}: a broken decoder went on")
        slowest = max(slowest, time.perf_counter() - began)
    faulthandler.cancel_dump_traceback_later()
    return {
        "inputs": inputs, "seed": seed, **outcomes, "slowest_ms": round(1e3 * slowest, 2),
        "peak_growth_kib": resident_kib() - warm, "peak_kib": resident_kib(),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print(json.dumps(run(chosen.inputs, chosen.seed)))
