"""Many clients at once: nothing is lost or mixed up, everyone gets their turn, and the memory stays flat."""

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ldm.web.caps import Caps
from tests.support.tiny_generate import save_model
from tests.support.tiny_web import listening, working

CLIENTS = 50
SECONDS = float(os.environ.get("LDM_LOAD_SEC", "20"))
MOST_GROWTH_MB = 60.0


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ask(url: str, client: str, method: str = "GET", body: Any = None) -> Any:
    """The answer, or the status of an error."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"x-client": client}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
            return content if answer.headers["content-type"] == "image/png" else json.loads(content)
    except urllib.error.HTTPError as error:
        return error.code


def one_request(url: str, client: str, draw: random.Random) -> tuple[int, bytes] | None:
    """Ask for an image and wait for it; one in ten is cancelled."""
    seed = draw.randrange(5)
    given = {"prompt": "a red apple", "seed": seed, "num_inference_steps": 1}
    job = ask(f"{url}/ldm/jobs", client, "POST", given)
    assert isinstance(job, dict), f"the server answered {job}"
    if draw.random() < 0.1:
        assert ask(f"{url}/ldm/jobs/{job['id']}", client, "DELETE")["state"] in (
            "cancelled",
            "done",
            "running",
        )
        return None
    while job["state"] in ("waiting", "running"):
        time.sleep(0.4)
        (job,) = ask(f"{url}/ldm/jobs?ids={job['id']}", client)["jobs"]
    assert job["state"] == "done" and job["images"][0]["seed"] == seed
    return seed, ask(f"{url}{job['images'][0]['url']}", client)


@pytest.mark.slow
def test_fifty_clients_at_once(tmp_path: Path) -> None:
    caps = Caps(kept_jobs=100, requests_per_sec=1e6, burst=10**9)
    counts, faults = [0] * CLIENTS, []
    seen: dict[int, set[bytes]] = {}
    with working(save_model(tmp_path), caps=caps) as service, listening(service) as url:
        end = time.monotonic() + SECONDS

        def work(number: int) -> None:
            draw = random.Random(number)
            try:
                while time.monotonic() < end:
                    if made := one_request(url, f"client {number}", draw):
                        seen.setdefault(made[0], set()).add(made[1])
                        counts[number] += 1
            except Exception as error:
                faults.append(f"client {number}: {error!r}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 3)
        before = resident_mb()
        for thread in threads:
            thread.join(SECONDS + 120)
        grown = resident_mb() - before
        assert faults == [] and service.queue.num_waiting() == 0
    print(f"{sum(counts)} images, {min(counts)} to {max(counts)} a client, {grown:.1f} MB more")
    assert set(seen) == set(range(5)) and all(len(files) == 1 for files in seen.values())
    assert min(counts) > 0 and max(counts) <= 2 * min(counts) + 5
    assert grown < MOST_GROWTH_MB
