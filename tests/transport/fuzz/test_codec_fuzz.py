"""The codec and the server survive nonsense: no hang, no crash, no growth of memory."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mm_autofocus_devices.transport import Client, Message, Server

pytest.importorskip("resource")  # how the script measures its memory
SCRIPT = Path(__file__).with_name("codec_fuzz.py")
GROWTH_KIB = 8 * 1024


def fuzz(inputs: int, seed: int, timeout_s: float) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--inputs", str(inputs), "--seed", str(seed)],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def check(answer: dict[str, int], inputs: int) -> None:
    assert answer["inputs"] == inputs
    assert answer["whole"] > 0.3 * inputs
    assert answer["refused"] > 0.2 * inputs
    assert answer["waits for more"] > 0.02 * inputs
    assert answer["peak_growth_kib"] < GROWTH_KIB


def test_the_codec_survives_nonsense() -> None:
    check(fuzz(20_000, 1, 100), 20_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_codec_survives_a_million_pieces_of_nonsense() -> None:
    check(fuzz(1_000_000, 2, 1700), 1_000_000)


def test_the_server_survives_nonsense() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import codec_fuzz
    finally:
        sys.path.remove(str(SCRIPT.parent))
    source, rng = codec_fuzz.Inputs(3), random.Random(3)
    threads = threading.active_count()
    applied: list[int] = []

    def handler(request: Message) -> Message:
        applied.append(request.number)
        return request.reply()

    hello = codec_fuzz.CODEC.encode(Message("hello", session=1))
    with Server(handler, message_s=0.3, max_clients=300) as server:
        client = Client(server.host, server.port, timeout_s=10.0)
        client.request("a")
        for index in range(200):
            data = source.kinds[index % len(source.kinds)]()
            with socket.create_connection((server.host, server.port), timeout=10) as connection:
                try:
                    for piece in source.pieces(rng.choice((b"", hello)) + data):
                        connection.sendall(piece)
                except ConnectionError:
                    pass  # it has hung up already
            if index % 50 == 0:
                client.request("a")
        client.request("a")
        assert client.reconnects == 0
        deadline = time.monotonic() + 20
        while server.clients > 1:
            assert time.monotonic() < deadline, "connections of clients that have left stay open"
            time.sleep(0.01)
        client.close()
    assert threading.active_count() <= threads + 1
