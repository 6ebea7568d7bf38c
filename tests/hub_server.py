"""
A Hugging Face Hub on this machine alone: what `huggingface_hub`, `transformers` and `datasets` ask of the real one when
they create repositories, push to them and load from them. Nothing of the clients is replaced, so what goes through here
goes through the same requests as it would there.

It knows users by their tokens; repositories of models, data sets and Spaces, public and private; commits with their
parents, branches and tags; regular and LFS files. Xet, pull requests, discussions and gates are not served, so clients
must set `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml  # comes with huggingface_hub

LFS_SUFFIXES = (".arrow", ".bin", ".npz", ".onnx", ".parquet", ".pt", ".safetensors")
MAX_REGULAR_SIZE = 10 * 1024 * 1024
# As on the real Hub, a new repository holds this one file.
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class HubError(Exception):
    """An answer that is an error. The client tells what kind it is by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Request:
    """One line of the log. `user` is `None` for a request without a token, `range` for one that wants the whole file."""

    method: str
    path: str
    status: int
    user: str | None
    range: str | None


@dataclass
class Response:
    """`cut_after` bytes of the body the connection breaks off."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


@dataclass(frozen=True)
class StoredFile:
    """A version of a file, whose bytes lie in the store under their `sha256`; `blob_id` is the object id in git."""

    sha256: str
    size: int
    blob_id: str
    is_lfs: bool

    def lfs(self, oid_key: str) -> dict[str, Any]:
        """What the tree (`oid_key="oid"`) or the list of siblings (`"sha256"`) says of an LFS file, or nothing."""
        pointer_size = len(lfs_pointer(self.sha256, self.size))
        info = {oid_key: self.sha256, "size": self.size, "pointerSize": pointer_size}
        return {"lfs": info} if self.is_lfs else {}

    @property
    def etag(self) -> str:
        return f'"{self.sha256 if self.is_lfs else self.blob_id}"'


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    date: str
    files: Mapping[str, StoredFile]

    def tree(self, folder: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        """The files and folders below `folder`, as the Hub lists them."""
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in self.files.items() if path.startswith(prefix)}
        parents = {str(parent) for path in inside for parent in PurePosixPath(path).parents}
        entries = [
            {"type": "file", "path": path, "size": file.size, "oid": file.blob_id, **file.lfs("oid")}
            for path, file in inside.items()
        ]
        entries += [
            {"type": "directory", "path": path, "size": 0, "oid": git_oid("tree", path.encode())}
            for path in parents
            if path.startswith(prefix) and path != "."
        ]
        direct = [entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)]
        return sorted(direct, key=lambda entry: entry["path"])


@dataclass
class Repository:
    """`name` is "owner/name", `kind` one of model, dataset and space. Branches and tags lead to ids of commits."""

    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or its own id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def commit(self, branch: str, files: Mapping[str, StoredFile], title: str) -> Commit:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        parent = self.branches.get(branch)
        content = [parent, title, date, sorted((path, file.blob_id) for path, file in files.items())]
        oid = git_oid("commit", json.dumps(content).encode())
        self.commits[oid] = Commit(oid, parent, title, date, dict(files))
        self.branches[branch] = oid
        return self.commits[oid]


def git_oid(kind: str, content: bytes) -> str:
    """An id as git gives it. The client compares that of a file with its own, and skips what has not changed."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What lies in git in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def front_matter(card: bytes) -> dict[str, Any]:
    """The metadata on top of a model or data set card."""
    match = re.match(r"---\s*\n(.*?)\n---", card.decode(), flags=re.DOTALL)
    return (yaml.safe_load(match[1]) if match else None) or {}


class HubServer(ThreadingHTTPServer):
    """
    The Hub, on a free port of 127.0.0.1.

    Args:
        folder (`Path`): an empty folder for the content of all files.
        users (`Mapping[str, str]`): for each token the name of its user, who alone may write in a namespace of that name.
        page_size (`int`, *optional*, defaults to 1000): entries in a page of a listing.

    Attributes:
        endpoint (`str`): the address, for `HF_ENDPOINT`.
        requests (`list[Request]`): all that was asked, in the order of the answers.
        interruptions (`dict[str, int]`): by the sha256 of a file, after how many bytes its next download breaks off.
        refusals (`set[str]`): the sha256 of files whose next upload is refused.
    """

    daemon_threads = True

    def __init__(self, folder: Path, users: Mapping[str, str], page_size: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.users, self.page_size = folder, users, page_size
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        # Another host, as the real one sends LFS files from: the client must not show its token there.
        self.content_endpoint = f"http://localhost:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.interruptions: dict[str, int] = {}
        self.refusals: set[str] = set()
        self.announced: dict[str, int] = {}  # LFS files that may be uploaded, with their sizes
        self.lock = threading.Lock()

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The content of a repository."""
        commit = self.repositories[kind, name].at(revision)
        return {path: self.read(file.sha256) for path, file in commit.files.items()}

    def read(self, sha256: str) -> bytes:
        return (self.folder / sha256).read_bytes()

    def store(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        # Two clients may bring the same content: neither reads what the other has half written.
        half = self.folder / f"{sha256}-{uuid.uuid4().hex}"
        half.write_bytes(content)
        os.replace(half, self.folder / sha256)
        return sha256

    def store_regular(self, content: bytes) -> StoredFile:
        return StoredFile(self.store(content), len(content), git_oid("blob", content), is_lfs=False)


@contextmanager
def running_hub(folder: Path, users: Mapping[str, str], page_size: int = 1000) -> Iterator[HubServer]:
    """A [`HubServer`] that answers from a thread of its own until the block ends."""
    hub = HubServer(folder, users, page_size)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


_API = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
_REPOSITORY = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], bool, Callable[..., Response]]] = []


def _route(method: str, pattern: str, writes: bool = False) -> Callable[[Callable[..., Response]], Callable]:
    """
    Makes a method of [`_Handler`] answer these requests. It gets the groups of the pattern, with `kind` and `name`
    turned into a repository that the user may read, or write where `writes` says so.
    """

    def register(answer: Callable[..., Response]) -> Callable[..., Response]:
        _ROUTES.append((method, re.compile(pattern), writes, answer))
        return answer

    return register


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every small answer waits 40 ms for the client's acknowledgement
    user: str | None
    query: dict[str, str]
    body: bytes

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.user = None
        try:
            self.user = self._authenticate()
            response = self._find(url.path)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            # At an address without https the client knows a missing repository by this header alone.
            headers |= {"X-Error-Code": error.code} if error.code else {}
            response = _json({"error": error.message}, error.status, headers)
        self._send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _authenticate(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        if token not in self.server.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.users[token]

    def _find(self, path: str) -> Response:
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, writes, answer in _ROUTES:
            match = pattern.fullmatch(path)
            if match is None or route_method != method:
                continue
            groups: dict[str, Any] = {name: unquote(value) for name, value in match.groupdict("").items()}
            if "name" in groups:
                groups["repository"] = self._repository(groups.pop("kind") or "model", groups.pop("name"), writes)
            return answer(self, **groups)
        raise HubError(404, f"{self.command} {path} is not served")

    def _repository(self, kind: str, name: str, writes: bool) -> Repository:
        repository = self.server.repositories.get((kind, name))
        if repository is None or (repository.private and self.user != repository.owner):
            # Who may not see a repository must not learn whether it exists.
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if writes and self.user != repository.owner:
            raise HubError(403 if self.user else 401, f"You have no right to write to {name}")
        return repository

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(response.body[: response.cut_after])
        if response.cut_after is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        request = Request(self.command, self.path, int(code), self.user, self.headers.get("Range"))
        self.server.requests.append(request)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed: the log is `HubServer.requests`."""

    # users and repositories

    @_route("GET", "/api/whoami-v2")
    def _who_am_i(self) -> Response:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"role": "write", "displayName": "tests"}
        return _json({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": token}})

    @_route("POST", "/api/repos/create")
    def _create(self) -> Response:
        wanted = json.loads(self.body)
        kind, name = self._wanted_name(wanted)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        repository = Repository(kind, name, private=bool(private))
        url = {"url": f"{self.server.endpoint}/{repository.url_path}", "name": name}
        with self.server.lock:
            if (kind, name) in self.server.repositories:
                return _json({"error": f"You already created this {kind} repo", **url}, 409)
            repository.commit("main", {".gitattributes": self.server.store_regular(GIT_ATTRIBUTES)}, "initial commit")
            self.server.repositories[kind, name] = repository
        return _json(url)

    @_route("DELETE", "/api/repos/delete")
    def _delete(self) -> Response:
        kind, name = self._wanted_name(json.loads(self.body))
        self._repository(kind, name, writes=True)
        del self.server.repositories[kind, name]
        return _json({})

    def _wanted_name(self, wanted: dict[str, Any]) -> tuple[str, str]:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        owner = wanted.get("organization") or self.user
        if owner != self.user:
            raise HubError(403, f"You have no right to write in the namespace {owner}")
        return wanted.get("type") or "model", f"{owner}/{wanted['name']}"

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self) -> Response:
        try:
            metadata = front_matter(json.loads(self.body)["content"].encode())
        except yaml.YAMLError as error:
            return _json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return _json({"errors": [], "warnings": warnings})

    @_route("GET", _API + "(?:/revision/(?P<revision>[^/]+))?")
    def _info(self, repository: Repository, revision: str) -> Response:
        commit = repository.at(revision or "main")
        card = front_matter(self.server.read(commit.files["README.md"].sha256)) if "README.md" in commit.files else {}
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.blob_id, **file.lfs("sha256")}
            for path, file in sorted(commit.files.items())
        ]
        named = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        return _json(
            {
                "id": repository.name,
                "author": repository.owner,
                "sha": commit.oid,
                "lastModified": commit.date,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [*(card.get("tags") or []), *named.values()],
                "cardData": card,
                "siblings": siblings,
                **named,
            }
        )

    # what is in a repository

    @_route("GET", _API + "/refs")
    def _refs(self, repository: Repository) -> Response:
        def entries(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        branches, tags = entries("heads", repository.branches), entries("tags", repository.tags)
        return _json({"branches": branches, "tags": tags, "converts": []})

    @_route("GET", _API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def _tree(self, repository: Repository, revision: str, folder: str) -> Response:
        commit = repository.at(revision)
        entries = commit.tree(folder, self.query.get("recursive", "false").lower() in ("true", "1"))
        if folder and not entries:
            raise self._no_entry(commit, folder)
        return self._page(entries)

    def _page(self, entries: list[dict[str, Any]]) -> Response:
        first = int(self.query.get("cursor", 0))
        after = first + self.server.page_size
        headers = {}
        if after < len(entries):
            url = f"{self.server.endpoint}{urlsplit(self.path).path}"
            headers["Link"] = f'<{url}?{urlencode({**self.query, "cursor": after})}>; rel="next"'
        return _json(entries[first:after], headers=headers)

    @_route("POST", _API + "/paths-info/(?P<revision>[^/]+)")
    def _paths_info(self, repository: Repository, revision: str) -> Response:
        wanted = parse_qs(self.body.decode()).get("paths", [])
        return _json([entry for entry in repository.at(revision).tree() if entry["path"] in wanted])

    @_route("GET", _REPOSITORY + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _resolve(self, repository: Repository, revision: str, path: str) -> Response:
        commit = repository.at(revision)
        if path not in commit.files:
            raise self._no_entry(commit, path)
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": file.etag}
        if not file.is_lfs:
            return self._content(file.sha256, headers)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": file.etag}
        # The address is the secret here, where the real one is signed.
        return Response(
            status=302, headers={**headers, "Location": f"{self.server.content_endpoint}/lfs/{file.sha256}"}
        )

    @_route("GET", "/lfs/(?P<sha256>[0-9a-f]{64})")
    def _lfs_content(self, sha256: str) -> Response:
        if not (self.server.folder / sha256).exists():
            raise HubError(404, f"There is no content {sha256}")
        return self._content(sha256, {"ETag": f'"{sha256}"'})

    def _content(self, sha256: str, headers: dict[str, str]) -> Response:
        content = self.server.read(sha256)
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        cut_after = self.server.interruptions.pop(sha256, None) if self.command == "GET" else None
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return Response(content, headers=headers, cut_after=cut_after)
        first, last = wanted.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= stop:
            return Response(status=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return Response(content[start:stop], 206, headers, cut_after)

    def _no_entry(self, commit: Commit, path: str) -> HubError:
        return HubError(404, f"{path} does not exist at {commit.oid}", "EntryNotFound")

    # changes

    @_route("POST", _API + "/branch/(?P<branch>[^/]+)", writes=True)
    def _create_branch(self, repository: Repository, branch: str) -> Response:
        start = repository.at(json.loads(self.body or "{}").get("startingPoint") or "main").oid
        return self._create_reference(repository.branches, branch, start)

    @_route("POST", _API + "/tag/(?P<revision>[^/]+)", writes=True)
    def _create_tag(self, repository: Repository, revision: str) -> Response:
        return self._create_reference(repository.tags, json.loads(self.body)["tag"], repository.at(revision).oid)

    def _create_reference(self, references: dict[str, str], name: str, oid: str) -> Response:
        if name in references:
            raise HubError(409, f"Reference {name} exists already")
        references[name] = oid
        return _json({})

    @_route("POST", _API + "/preupload/(?P<revision>[^/]+)", writes=True)
    def _preupload(self, repository: Repository, revision: str) -> Response:
        present = repository.at(revision).files
        files = []
        for file in json.loads(self.body)["files"]:
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > MAX_REGULAR_SIZE
            answer = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if file["path"] in present:
                answer["oid"] = present[file["path"]].etag.strip('"')
            files.append(answer)
        return _json({"files": files})

    @_route("POST", _REPOSITORY + r"\.git/info/lfs/objects/batch", writes=True)
    def _lfs_batch(self, repository: Repository) -> Response:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if not (self.server.folder / oid).exists():
                self.server.announced[oid] = size
                entry["actions"] = {"upload": {"href": f"{self.server.content_endpoint}/lfs/{oid}"}}
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    @_route("PUT", "/lfs/(?P<sha256>[0-9a-f]{64})")
    def _lfs_upload(self, sha256: str) -> Response:
        if sha256 in self.server.refusals:
            self.server.refusals.remove(sha256)
            raise HubError(403, "The address of the upload is no longer valid")
        if self.server.announced.get(sha256) != len(self.body) or hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, f"The {len(self.body)} bytes are not the announced {sha256}")
        self.server.store(self.body)
        return Response()

    @_route("POST", _API + "/commit/(?P<branch>[^/]+)", writes=True)
    def _commit(self, repository: Repository, branch: str) -> Response:
        if "create_pr" in self.query:
            raise HubError(400, "Pull requests are not served")
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        with self.server.lock:
            if branch not in repository.branches:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = repository.at(branch)
            if not head.oid.startswith(header["value"].get("parentCommit", "")):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for operation in operations:
                self._apply(operation["key"], operation["value"], files, head)
            commit = repository.commit(branch, files, header["value"]["summary"])
        url = f"{self.server.endpoint}/{repository.url_path}/commit/{commit.oid}"
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": url})

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, StoredFile], head: Commit) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.server.store_regular(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if not (self.server.folder / value["oid"]).exists():
                raise HubError(400, f"{path} was not uploaded before it was committed")
            size = (self.server.folder / value["oid"]).stat().st_size
            blob_id = git_oid("blob", lfs_pointer(value["oid"], size))
            files[path] = StoredFile(value["oid"], size, blob_id, is_lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            prefix = path.rstrip("/") + "/"
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(prefix))]
            if not gone:
                raise self._no_entry(head, path)
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key}")
