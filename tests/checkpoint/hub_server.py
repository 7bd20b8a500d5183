"""A hub on 127.0.0.1 that answers what huggingface_hub asks, and a runner that asks it in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What the hub has under one id; `gated` needs the token `hf_good`, `broken` answers 503 to everything, and `says`
    is the body of every answer, as a login page's."""

    files: dict[str, bytes]
    gated: bool = False
    broken: bool = False
    says: bytes | None = None


@dataclass
class Hub:
    """The server's state: its repositories, and every request for a file as (method, name, bytes sent)."""

    repositories: dict[str, Repository]
    url: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)

    def run(self, *calls: str, home: Path, **environment: str) -> list[str]:
        """The results of expressions in one fresh process that sees this hub; an error is its lines."""
        script = Path(__file__).with_name("hub_calls.py")
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        own = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        variables = own | quiet | {"HF_ENDPOINT": self.url, "HF_HOME": str(home)} | environment
        run = subprocess.run(
            [sys.executable, script, *calls], env=variables, capture_output=True, text=True, check=False, timeout=60
        )
        assert (run.returncode, run.stderr) == (0, "")  # no progress bar where there is no terminal
        return json.loads(run.stdout)


@contextmanager
def serve_hub(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """A hub that listens until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        repo_id = "/".join(parts[2:4] if is_api else parts[:2])
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif repository.broken:
            self.refuse(503, "", "Try again later")
        elif repository.says is not None:
            self.answer(200, repository.says, {"ETag": '"1"', "X-Repo-Commit": COMMIT})
        elif is_api:
            self.answer_api(repo_id, repository, parts[4:])
        else:
            self.answer_file(repository, "/".join(parts[4:]))

    def answer_api(self, repo_id: str, repository: Repository, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in repository.files.items()
            ]
            self.answer_json(tree)
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            self.answer_json({"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings})

    def answer_file(self, repository: Repository, name: str) -> None:
        if repository.gated and self.headers.get("Authorization") != "Bearer hf_good":
            self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo", "Access is restricted")
        elif name not in repository.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = repository.files[name]
            etag = hashlib.sha1(content).hexdigest()
            first, last = 0, len(content) - 1
            wanted = self.headers.get("Range")
            if wanted:
                low, _, high = wanted.removeprefix("bytes=").partition("-")
                first, last = int(low), min(int(high) if high else last, last)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if wanted:
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            body = content[first : last + 1]
            self.hub.requests.append((self.command, name, len(body)))
            self.answer(206 if wanted else 200, body, headers)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer(status, b"", headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
