"""A Hub on 127.0.0.1 that keeps its repositories in memory: the part of the HTTP API that create_repo, upload_folder
and from_pretrained speak."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml

TOKEN = "hf_test"
USER = "reader"


class Repository:
    """Branches by name, each a tree of contents by path."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}

    def commit_of(self, branch: str) -> str:
        tree = self.branches[branch]
        return hashlib.sha1(repr(sorted((p, hashlib.sha1(x).digest()) for p, x in tree.items())).encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch that is called so, or whose commit is called so."""
        return next((name for name in self.branches if revision in (name, self.commit_of(name))), None)


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves at `hub.url`; `hub.repositories` is what clients have made of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


@contextmanager
def connected() -> Iterator[Hub]:
    """A Hub that the clients of this process talk to, without a token of the machine's user."""
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        for name, value in (settings | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
            patch.setattr(huggingface_hub.constants, name, value)
        patch.setattr("noria.hub.get_token", lambda: None)
        # The session that is open may refuse to leave the machine: it was made while offline.
        huggingface_hub.utils.close_session()
        yield hub
        huggingface_hub.utils.close_session()


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(status, code, message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message, **headers}


class Handler(BaseHTTPRequestHandler):
    """Each route is a method and a pattern; its function gets the parts of the path and returns an answer as JSON."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        """Silent."""

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = urlsplit(self.path).path
        try:
            for method, pattern, route in ROUTES:
                if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path)):
                    return self.answer(200, route(self, *map(unquote, found.groups())))
            raise Refused(404, "EntryNotFound", f"no {self.command} {path}")
        except Refused as refused:
            self.answer(refused.status, {"error": refused.headers["X-Error-Message"]}, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, status: int, content, headers=None) -> None:
        if isinstance(content, tuple):
            content, headers = content
        if isinstance(content, dict) and "status" in content:
            status = content.pop("status")
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str, write: bool = False) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.signed_in):
            raise Refused(401, "RepoNotFound", "Repository not found")
        if write and not self.signed_in:
            raise Refused(403, "", "a token with the right to write is needed")
        return found

    def branch(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.repository(name)
        branch = repository.find(revision)
        if branch is None:
            raise Refused(404, "RevisionNotFound", f"no revision {revision}")
        return repository, branch

    def create(self) -> dict:
        asked = json.loads(self.body)
        if not self.signed_in:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return answer | {"status": 409, "error": "You already created this model repo"}
        self.server.repositories[name] = Repository(asked.get("visibility") == "private")
        return answer

    def info(self, name: str, revision: str = "main") -> dict:
        repository, branch = self.branch(name, revision)
        files = [{"rfilename": path} for path in repository.branches[branch]]
        return {"id": name, "sha": repository.commit_of(branch), "siblings": files, "private": repository.private}

    def make_branch(self, name: str, branch: str) -> dict:
        branches = self.repository(name, write=True).branches
        if branch in branches:
            return {"status": 409, "error": "Reference already exists"}
        branches[branch] = dict(branches["main"])
        return {}

    def validate(self) -> dict:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        good = block and isinstance(yaml.safe_load(block[1]), dict)
        return {"errors": [], "warnings": []} if good else {"status": 400, "errors": [{"message": "no metadata"}]}

    def preupload(self, name: str, revision: str) -> dict:
        self.repository(name, write=True)
        kinds = [(x["path"], "lfs" if x["path"].endswith(".safetensors") else "regular") for x in self.asked("files")]
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in kinds]}

    def asked(self, key: str) -> list:
        return json.loads(self.body)[key]

    def batch(self, name: str) -> dict:
        self.repository(name, write=True)
        objects = [{"oid": x["oid"], "size": x["size"]} for x in self.asked("objects")]
        return {
            "objects": [x | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{x['oid']}"}}} for x in objects]
        }

    def put(self, oid: str) -> dict:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        return {}

    def commit(self, name: str, revision: str) -> dict:
        repository = self.repository(name, write=True)
        proposed = "create_pr" in parse_qs(urlsplit(self.path).query)
        branch = "refs/pr/1" if proposed else revision
        tree = repository.branches[branch] = dict(repository.branches[revision])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.server.objects[value["oid"]]
        oid = repository.commit_of(branch)
        answer = {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}
        return answer | ({"pullRequestUrl": f"{self.server.url}/{name}/discussions/1"} if proposed else {})

    def resolve(self, name: str, revision: str, path: str) -> tuple[bytes, dict]:
        repository, branch = self.branch(name, revision)
        commit = {"X-Repo-Commit": repository.commit_of(branch)}
        content = repository.branches[branch].get(path)
        if content is None:
            raise Refused(404, "EntryNotFound", "Entry not found", **commit)
        return content, commit | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    ("POST", f"/api/models/{NAME}/branch/([^/]+)", Handler.make_branch),
    ("POST", f"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]+)", Handler.put),
    ("POST", f"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
