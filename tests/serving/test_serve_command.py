"""`recipe serve` as it is typed."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_a_process_serves_until_it_is_stopped(tiny_bundle: Path) -> None:
    words = ["serve", str(tiny_bundle), "--port", "0", "--json"]
    command = [sys.executable, "-c", "from coreai_recipes.cli import script; script()", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        document = "".join(iter(child.stdout.readline, "}\n")) + "}"
        found = json.loads(document)
        assert found["models"] == ["tiny-llama"]
        with urllib.request.urlopen(f"{found['url']}/models") as response:
            assert json.load(response)["data"][0]["context"] == 256
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
        assert child.stderr.read() == "not verified\nterminated\n"


def test_an_address_that_cannot_be_had_is_a_sentence(run: Run, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("serve", tiny_bundle, "--port", port) == (
            2,
            "",
            f"127.0.0.1:{port}: another program listens there; choose another --port\n",
        )
    assert run("serve", tiny_bundle, "--host", "0.0.0.0") == (
        2,
        "",
        "--host 0.0.0.0: others can reach this address: add --api-key KEY\n",
    )
    status, _, err = run("serve", tiny_bundle, "--host", "192.0.2.1", "--api-key", "k")
    assert (status, err) == (2, "192.0.2.1:8000: cannot listen: cannot assign requested address\n")
    status, _, err = run("serve", tiny_bundle, "--host", "no such host", "--port", 0)
    assert status == 2
    assert err.startswith("--host no such host: is no address of this machine: ")
    assert run("serve", tiny_bundle, "--port", 0, "--api-key", " k")[2] == (
        "--api-key: must be printable ASCII without spaces at its ends\n"
    )


def test_bundles_that_are_not_there_or_of_one_name_are_a_sentence(run: Run, tiny_bundle: Path) -> None:
    status, _, err = run("serve", tiny_bundle, tiny_bundle, "--port", 0)
    assert status == 2
    assert err.splitlines()[-1] == (
        f"{tiny_bundle}: tiny-llama is the name of another bundle too: serve it under another folder's"
    )
    assert run("serve", "no-such-bundle", "--port", 0)[2].startswith("no-such-bundle: no such bundle")


def test_what_the_extra_brings_is_asked_for(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "coreai_recipes.serving.server", raising=False)
    assert run("serve", tiny_bundle) == (
        2,
        "",
        "recipe serve needs starlette, uvicorn and prometheus-client: pip install 'coreai-recipes[serve]'\n",
    )
