"""Many clients at once, and bad ones: nothing is lost, nothing mixed, and memory stays flat."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import serving_models
from serving_models import reading_model, served

from coreai_recipes.generate import answer
from coreai_recipes.serving.transport import MOST_BYTES

CLIENTS, REQUESTS = 8, 200
MEBIBYTE = b" " * (1 << 20)


@pytest.fixture
def process() -> Iterator[tuple[str, int]]:
    """The address and the id of a server in a process of its own."""
    path = [str(Path(serving_models.__file__).parents[1]), *sys.path]
    code = (
        f"import sys, runpy; sys.path[:0] = {path!r}; runpy.run_path({serving_models.__file__!r}, run_name='__main__')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline()), child.pid
        child.terminate()


def resident_mebibytes(pid: int) -> float:
    """The most memory that a process has had, where the system says so, else what it has now."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) / 1024


def post(url: str, body: Any, **headers: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json", **headers})
    return connection


def request(number: int, **given: Any) -> dict[str, Any]:
    return {"model": "read", "prompt": f"Verse {number % 20} of the book, said {number}", "max_tokens": 6, **given}


def leave_at_once(url: str, number: int) -> None:
    connection = post(url, json.dumps(request(number, max_tokens=400, stream=True)))
    response = connection.getresponse()
    response.read(1)
    response.close()
    connection.close()


def send_no_json(url: str, number: int) -> None:
    response = post(url, "{" * (number + 1)).getresponse()
    assert response.status == 400
    assert "not JSON" in json.load(response)["error"]["message"]


def send_slowly(url: str, number: int) -> None:
    """A body in single bytes, and a stream that is read in single bytes."""
    body = json.dumps(request(number, stream=True)).encode()
    connection = post(url, (body[at : at + 1] for at in range(len(body))), **{"content-length": str(len(body))})
    response = connection.getresponse()
    read = b"".join(iter(lambda: response.read(1), b""))
    assert read.endswith(b"data: [DONE]\n\n")


def send_too_much(url: str, number: int) -> None:
    response = post(url, (MEBIBYTE for _ in range(100)), **{"content-length": str(100 << 20)}).getresponse()
    assert response.status == 413
    assert json.load(response)["error"]["message"] == f"the body has more than {MOST_BYTES >> 20} MiB"


def test_a_load_of_clients_of_every_kind(process: tuple[str, int], tmp_path: Path) -> None:
    url, pid = process
    model, _ = reading_model(tmp_path)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    wanted = {}
    for number in range(REQUESTS):
        result = answer(model, request(number)["prompt"], raw=True, max_tokens=6)
        list(result)
        wanted[number] = result.text
    assert len(set(wanted.values())) > REQUESTS * 0.9  # so that a mixed answer would be seen

    def ask(number: int) -> str:
        if number % 2:
            return client.completions.create(**request(number)).choices[0].text
        return "".join(each.choices[0].text for each in client.completions.create(**request(number, stream=True)))

    ask(0)
    before = resident_mebibytes(pid)
    bad = [leave_at_once, send_no_json, send_slowly] * 5 + [send_too_much] * 2
    with ThreadPoolExecutor(CLIENTS) as pool:
        others = [pool.submit(each, url, number) for number, each in enumerate(bad)]
        answers = dict(zip(range(REQUESTS), pool.map(ask, range(REQUESTS)), strict=True))
    for other in others:
        other.result()
    assert answers == wanted
    assert resident_mebibytes(pid) - before < 48  # a body of 100 MB, kept once, would be seen
    with urllib.request.urlopen(f"{url}/metrics") as response:
        metrics = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if line[0] != "#")
    ended = sum(float(value) for name, value in metrics.items() if name.startswith("recipe_answers_total"))
    assert ended == REQUESTS + 1 + len([each for each in bad if each in (leave_at_once, send_slowly)])
    assert float(metrics['recipe_requests_waiting{model="read"}']) == 0


def wait_for(told: Any) -> None:
    """Until it is so: what another thread does, it has told nobody of."""
    deadline = time.monotonic() + 30
    while not told():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_too_many_are_turned_away_and_who_leaves_makes_room(tmp_path: Path) -> None:
    model, runtime = reading_model(tmp_path)
    with served({"read": model}, queue=1) as url, ThreadPoolExecutor(2) as pool:
        runtime.gate.clear()
        first = pool.submit(lambda: json.load(post(url, json.dumps(request(1))).getresponse()))
        assert runtime.called.wait(30)
        waiting = post(url, json.dumps(request(2)))
        wait_for(lambda: 'recipe_requests_waiting{model="read"} 1.0' in text_of(f"{url}/metrics"))
        refused = post(url, json.dumps(request(3))).getresponse()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert json.load(refused)["error"] == {
            "message": "1 requests wait for read already: try again",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        waiting.close()
        wait_for(lambda: 'recipe_requests_waiting{model="read"} 0.0' in text_of(f"{url}/metrics"))
        third = pool.submit(lambda: json.load(post(url, json.dumps(request(3))).getresponse()))
        wait_for(lambda: 'recipe_requests_waiting{model="read"} 1.0' in text_of(f"{url}/metrics"))
        runtime.gate.set()
        assert first.result()["usage"]["completion_tokens"] == third.result()["usage"]["completion_tokens"] == 6


def text_of(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        return str(response.read().decode())


def test_a_client_that_leaves_ends_its_answer_between_two_calls(tmp_path: Path) -> None:
    """Inside a prompt, too: of 400 tokens in 25 calls the first alone is made."""
    model, runtime = reading_model(tmp_path)
    with served({"read": model}) as url:
        runtime.gate.clear()
        connection = post(url, json.dumps(request(0, prompt=list(range(5, 205)) * 2)))
        assert runtime.called.wait(30)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        wait_for(lambda: 'path="/v1/completions"' in text_of(f"{url}/metrics"))
        runtime.gate.set()
        wait_for(lambda: 'outcome="left"} 1.0' in text_of(f"{url}/metrics"))
        assert len(runtime.calls) == 1


def test_a_server_that_stops_ends_what_runs_with_a_sentence(tmp_path: Path) -> None:
    model, runtime = reading_model(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with served({"read": model}) as url:
            runtime.gate.clear()
            running = pool.submit(lambda: json.load(post(url, json.dumps(request(1))).getresponse()))
            assert runtime.called.wait(30)
            threading.Timer(0.05, runtime.gate.set).start()  # when it is being stopped, or before: either way it ends
        reply = running.result()
    assert "choices" in reply or reply["error"]["message"] == "the server is being stopped"
