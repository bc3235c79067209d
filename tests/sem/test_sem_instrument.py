"""The SEM's client from several threads: no two locks are ever taken in different orders."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mm_autofocus_devices.sem.instrument import SemClient
from mm_autofocus_devices.sem.server import SemServer
from sem_rig import make_column

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("question", ["describe", "state"])
def test_no_thread_waits_for_another_that_waits_for_it_when_a_server_was_restarted(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SemServer(make_column()) as server, SemClient(server.host, server.port) as sem:
        sem.state()
        request, free = sem.client.request, []

        def asked(name: str, **fields: Any) -> Any:
            # A restart makes the client, which holds its own lock from here on, ask for the settings under the other.
            other = threading.Thread(target=lambda: free.append(sem._lock.acquire(blocking=False)))
            other.start()
            other.join(20)
            return request(name, **fields)

        monkeypatch.setattr(sem.client, "request", asked)
        getattr(sem, question)()
        assert free == [False]
