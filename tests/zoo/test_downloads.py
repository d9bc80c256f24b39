"""Weights that do not ship, from a real server that cuts, delays and lies."""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import dynzoo
from dynzoo.zoo import downloads, hub, preset_folder, shipped
from dynzoo.zoo.downloads import DownloadError, download

CONTENT = np.random.default_rng(0).bytes(600_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves `files` by path; what goes wrong is said by `fault`."""

    files: dict[str, bytes] = {}
    fault = ""
    asked: list[str] = []

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        kind = type(self)
        content = kind.files.get(self.path)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        kind.asked.append(f"{self.path} {start}")
        if content is None:
            self.send_error(404)
        elif kind.fault == "page":
            self._answer(200, b"<!doctype html><p>please log in", content_type="text/html")
        elif start and kind.fault == "restarts":
            self._answer(200, content)
        elif start > len(content):
            self.send_error(416)
        elif kind.fault == "elsewhere" and start:
            self._answer(206, content, {"Content-Range": f"bytes 0-{len(content) - 1}/*"})
        else:
            part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self._answer(206 if start else 200, content[start:], part if start else {})

    def _answer(self, code, body, headers=(), content_type="application/octet-stream"):
        kind = type(self)
        length = 10**12 if kind.fault == "boasts" else len(body)
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        if kind.fault != "endless":
            self.send_header("Content-Length", str(length))
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        try:
            if kind.fault == "cuts":
                self.wfile.write(body[: max(1, len(body) // 2)])
            elif kind.fault == "stalls":
                self.wfile.write(body[:1000])
                time.sleep(0.6)
            elif kind.fault == "endless":
                for _ in range(100):
                    self.wfile.write(body)
            else:
                self.wfile.write(body)
        except OSError:
            pass  # the client went away


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The address of a server; its class takes files and faults."""
    kind = type("Own", (Server,), {"files": {"/w": CONTENT}, "fault": "", "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "SECONDS", 0.3)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    kind.address = f"http://127.0.0.1:{running.server_address[1]}"
    yield kind
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_file_comes_whole(server, tmp_path):
    target = tmp_path / "w"
    download(server.address + "/w", target, SUM)
    assert target.read_bytes() == CONTENT and os.listdir(tmp_path) == ["w"]


def test_a_cut_download_goes_on_where_it_was(server, tmp_path):
    server.fault = "cuts"
    with pytest.raises(DownloadError, match=r"was cut: .* bytes came \(.* the next call goes on"):
        download(server.address + "/w", tmp_path / "w", SUM)
    starts = [int(line.split()[1]) for line in server.asked]
    assert starts == sorted(set(starts)) and len(starts) == 4 and not (tmp_path / "w").exists()
    have = (tmp_path / "w.partial").stat().st_size
    server.fault = ""
    download(server.address + "/w", tmp_path / "w", SUM)
    assert server.asked[-1] == f"/w {have}" and have > 0
    assert (tmp_path / "w").read_bytes() == CONTENT and os.listdir(tmp_path) == ["w"]


def test_a_server_that_cannot_go_on_begins_anew(server, tmp_path):
    server.fault = "restarts"
    (tmp_path / "w.partial").write_bytes(CONTENT[:1000])
    download(server.address + "/w", tmp_path / "w", SUM)
    assert (tmp_path / "w").read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [b"x" * 1000, b"x" * 700_000])
def test_what_lay_there_of_another_file_is_dropped(server, tmp_path, damaged):
    (tmp_path / "w.partial").write_bytes(damaged)
    download(server.address + "/w", tmp_path / "w", SUM)
    assert (tmp_path / "w").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "path", "message"),
    [
        ("page", "/w", "is a web page and no file"),
        ("boasts", "/w", "says that it has 1,000,000,000,000 bytes, more than"),
        ("endless", "/w", "does not end: more than 2,000,000 bytes"),
        ("stalls", "/w", "was cut: timed out"),
        ("", "/other", "is not to be had: HTTP 404"),
        ("elsewhere", "/w", "was asked to go on at byte 7, and does not"),
    ],
)
def test_a_server_that_lies_or_waits_is_named_in_one_line(server, tmp_path, fault, path, message):
    server.fault = fault
    if fault == "elsewhere":
        (tmp_path / "w.partial").write_bytes(CONTENT[:7])
    with pytest.raises(DownloadError, match=re.escape(server.address + path)) as error:
        download(server.address + path, tmp_path / "w", SUM, largest=2_000_000)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


def test_another_file_than_was_asked_for_is_not_kept(server, tmp_path):
    server.files["/w"] = CONTENT[::-1]
    (tmp_path / "w").write_bytes(b"old")
    with pytest.raises(DownloadError, match="its SHA-256 is .* Nothing of it was kept"):
        download(server.address + "/w", tmp_path / "w", SUM)
    assert (tmp_path / "w").read_bytes() == b"old" and os.listdir(tmp_path) == ["w"]


def test_nobody_listens(tmp_path):
    with pytest.raises(DownloadError, match="cannot be reached: .*`DYNZOO_WEIGHTS` says where"):
        download("http://127.0.0.1:1/w", tmp_path / "w", SUM)


@pytest.fixture
def without_weights(tmp_path, monkeypatch):
    """An installation whose smallest preset came without weights; where they are kept."""
    source = shipped.folders()["isometric_tiny_cifar10"]
    root, kept = tmp_path / "installed", tmp_path / "kept" / "tiny"
    shutil.copytree(source, kept)
    (root / "tiny").mkdir(parents=True)
    for name in ("metadata.json", "config.json"):
        shutil.copy(source / name, root / "tiny" / name)
    monkeypatch.setattr(shipped, "root", lambda: root)
    monkeypatch.setenv("DYNZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DYNZOO_WEIGHTS", raising=False)
    return kept


def test_weights_come_once_and_then_without_a_network(server, without_weights, monkeypatch):
    with pytest.raises(DownloadError, match="weights of tiny do not come with this installation"):
        dynzoo.from_preset("tiny")
    server.files["/base/tiny/model.weights.h5"] = (
        without_weights / "model.weights.h5"
    ).read_bytes()
    monkeypatch.setenv("DYNZOO_WEIGHTS", server.address + "/base/")
    model = dynzoo.from_preset("tiny")
    assert server.asked == ["/base/tiny/model.weights.h5 0"]
    monkeypatch.delenv("DYNZOO_WEIGHTS")  # from the cache
    again = dynzoo.from_preset("tiny")
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    cache = next((without_weights.parents[1] / "cache" / "presets").iterdir())
    (cache / "model.weights.h5").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="model.weights.h5 is damaged or was changed"):
        dynzoo.from_preset("tiny")


@pytest.mark.parametrize("address", [False, True])
def test_weights_from_a_folder(without_weights, monkeypatch, address):
    base = without_weights.parent
    monkeypatch.setenv("DYNZOO_WEIGHTS", base.as_uri() if address else str(base))
    about = json.loads((without_weights / "metadata.json").read_text())
    folder = downloads.complete(shipped.root() / "tiny", about)
    assert folder.parent == downloads.home() / "presets"
    assert (folder / "model.weights.h5").is_file() and not list(folder.glob("*.partial"))
    (folder / "model.weights.h5").unlink()
    shutil.rmtree(without_weights)
    with pytest.raises(DownloadError, match="model.weights.h5 cannot be read: No such file"):
        downloads.complete(shipped.root() / "tiny", about)


def test_addresses_of_other_kinds_are_refused(without_weights, monkeypatch):
    monkeypatch.setenv("DYNZOO_WEIGHTS", "ftp://example.org/weights")
    with pytest.raises(DownloadError, match="must be a folder, or a file:// or https:// address"):
        dynzoo.from_preset("tiny")


def test_a_repository_of_hugging_face(without_weights, monkeypatch):
    """Through a stand-in for huggingface_hub, whose server is not ours to cut."""
    asked, kept = [], {"owner/tiny": without_weights}

    def snapshot_download(name, revision, local_dir, allow_patterns):
        asked.append((name, revision))
        if name not in kept:
            raise OSError("no network\nat all")
        shutil.copytree(kept[name], local_dir, dirs_exist_ok=True)

    def upload_folder(repo_id, folder_path):
        kept[repo_id] = shutil.copytree(folder_path, without_weights.parent / "pushed")

    library = types.SimpleNamespace(
        snapshot_download=snapshot_download,
        upload_folder=upload_folder,
        create_repo=lambda name, private, exist_ok: asked.append((name, private)),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    model = dynzoo.from_preset("hf://owner/tiny@v1")
    assert asked == [("owner/tiny", "v1")] and model.output_shape == (None, 10)
    with pytest.raises(DownloadError, match="hf://owner/none cannot be had: .*no network"):
        dynzoo.from_preset("hf://owner/none")
    with pytest.raises(ValueError, match="must be hf://owner/name"):
        dynzoo.from_preset("hf://../tiny")
    del kept["owner/tiny"]
    assert hub.from_hub("hf://owner/tiny@v1").is_dir()  # what was brought before
    assert preset_folder.push_to_hub(model, "me/mine", {"dataset": "cifar10"}) == "hf://me/mine"
    assert asked[-1] == ("me/mine", False)
    assert (kept["me/mine"] / "metadata.json").is_file()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install 'dynzoo\\[hub\\]'"):
        hub.from_hub("hf://owner/tiny")
