"""``mm-autofocus serve sem``: says where it listens, serves, and ends cleanly when it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.cli import app_serve, serve
from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.sem.instrument import SemClient

SCRIPT = """
import typer
from mm_autofocus.cli import app_serve
from mm_autofocus.cli.groups import Groups
app = typer.Typer()
app_serve.register(Groups.make(app))
app()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_leaves_the_beam_blanked(number: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-c", SCRIPT, "serve", "sem", "--port", str(port), "--specimen", "grid", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {
            "host": "127.0.0.1", "port": port, "setup": "a", "specimen": "grid",
        }  # fmt: skip
        with SemClient("127.0.0.1", port) as sem:
            sem.set(width=320, height=240)
            assert sem.scan().shape == (240, 320)
            sem.set(blanked=False)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        outcome = json.loads(out)
        assert outcome["frames"] == 1
        assert outcome["beam_blanked"] is True
    finally:
        process.kill()
        process.wait()


def test_both_setups_and_ports() -> None:
    for setup, wd in (("a", 4500.0), ("b", 6000.0)):
        stop, where = threading.Event(), []
        options: dict[str, Any] = {
            "host": "127.0.0.1", "port": free_port(), "setup": setup, "specimen": "tin", "seed": 3, "speed": 0.0,
            "drift_um_per_min": 0.0, "charging": 0.0, "blank_fraction": 0.0,
        }  # fmt: skip

        def started(address: dict[str, Any]) -> None:
            where.append(address)  # noqa: B023
            with SemClient(address["host"], address["port"]) as sem:
                assert sem.state().working_distance_um == wd  # noqa: B023
            stop.set()  # noqa: B023

        outcome = serve.serve_sem(**options, started=started, stop=stop)
        assert where[0]["port"] == options["port"]
        assert outcome["requests"] >= 1
        assert outcome["beam_blanked"]


def test_a_port_in_use_is_one_clear_line() -> None:
    app = typer.Typer()
    app_serve.register(Groups.make(app))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "sem", "--port", str(port), "--json"])
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["error"] == HardwareError.__name__
    assert f"127.0.0.1:{port}" in answer["message"]
    assert "Choose another port" in answer["message"]
