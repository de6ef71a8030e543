"""Downloads against a server on this machine that breaks off, lies and refuses; and a downloader that is killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pooch
import pytest

from qdiff.errors import UserError
from qdiff.files import download
from qdiff.files.download import fetch, name_for

CONTENT = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(CONTENT).hexdigest()
BLOCK = 1 << 16


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        server.asked.append(start)
        if server.status:
            self.send_error(server.status)
        elif not server.ranges:
            self.send(200, server.content)
        elif start >= len(server.content):
            self.send_error(416)
        else:
            self.send(206, server.content[start:])

    def send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            for i in range(0, min(len(body), self.server.breaks_after), BLOCK):
                self.wfile.write(body[i : i + BLOCK])
                time.sleep(self.server.pause)
        except OSError:
            pass  # the client was killed

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve CONTENT as the published weights `w`; attributes make the server misbehave."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.status, server.pause, server.breaks_after = CONTENT, True, None, 0, 1 << 30
    server.asked = []
    entry = {"url": f"http://127.0.0.1:{server.server_port}/w?dl=1", "file": "folder/w.ckpt", "md5": MD5}
    published = tmp_path / "published.json"
    published.write_text(json.dumps({"some": {"w": entry}, "other": {}}))
    monkeypatch.setattr(download, "PUBLISHED", published)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "diffusion_models_converted" / "folder" / "w.ckpt"


def part_of(path, content=None):
    part = path.with_name("w.ckpt.part")
    if content is not None:
        path.parent.mkdir(parents=True)
        part.write_bytes(content)
    return part


def refusal(cache):
    with pytest.raises(UserError) as error:
        fetch("w", cache)
    message = str(error.value)
    assert message.isprintable()
    return message


def test_a_file_is_downloaded_once(server, tmp_path, path):
    assert fetch("w", tmp_path) == path
    assert path.read_bytes() == CONTENT
    assert fetch("w", tmp_path) == path
    assert server.asked == [0]
    assert not part_of(path).exists()


def test_the_default_cache(server, tmp_path, path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch("w") == path
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch("w") == tmp_path / "home" / ".cache" / path.relative_to(tmp_path)


def test_a_broken_connection_is_one_line_and_the_next_try_goes_on(server, tmp_path, path):
    server.breaks_after = 5 * BLOCK
    message = refusal(tmp_path)
    assert "http://127.0.0.1" in message and str(path) in message and "--ckpt" in message
    kept = part_of(path).stat().st_size
    assert 4 * BLOCK <= kept <= 5 * BLOCK and not path.exists()
    server.breaks_after = 1 << 30
    assert fetch("w", tmp_path).read_bytes() == CONTENT
    assert server.asked == [0, kept]


def test_a_server_without_ranges_sends_all_again(server, tmp_path, path):
    server.ranges = False
    part_of(path, CONTENT[: 3 * BLOCK])
    assert fetch("w", tmp_path).read_bytes() == CONTENT
    assert server.asked == [3 * BLOCK]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "stale", [CONTENT + b"more", b"x" * len(CONTENT), b"of another file"], ids=["longer", "as long", "shorter"]
)
def test_a_part_that_does_not_fit_is_started_again(server, tmp_path, path, stale, ranges):
    server.ranges = ranges
    part_of(path, stale)
    assert fetch("w", tmp_path).read_bytes() == CONTENT
    assert server.asked == ([len(stale), 0] if ranges else [len(stale)])


def test_a_part_that_is_whole_needs_no_download(server, tmp_path, path):
    part_of(path, CONTENT)
    assert fetch("w", tmp_path).read_bytes() == CONTENT
    assert server.asked == [len(CONTENT)]


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_refusing_server_is_one_line(server, tmp_path, path, status):
    server.status = status
    message = refusal(tmp_path)
    assert str(status) in message and str(path) in message and "--ckpt" in message
    server.status = None
    assert fetch("w", tmp_path).read_bytes() == CONTENT


def test_no_server_is_one_line(server, tmp_path, path):
    entry = json.loads(download.PUBLISHED.read_text())
    entry["some"]["w"]["url"] = "http://127.0.0.1:1/w"
    download.PUBLISHED.write_text(json.dumps(entry))
    message = refusal(tmp_path)
    assert "http://127.0.0.1:1/w" in message and str(path) in message and "--ckpt" in message


def test_other_content_never_becomes_the_file(server, tmp_path, path):
    server.content = b"<html>please log in</html>"
    assert MD5 in refusal(tmp_path)
    assert not path.exists() and not part_of(path).exists()
    assert server.asked == [0]


def test_a_cache_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "--ckpt" in refusal(tmp_path / "file")


# The md5 on every use


def test_a_flipped_bit_in_the_cache_is_found_and_the_file_kept_aside(server, tmp_path, path):
    fetch("w", tmp_path)
    damaged = bytearray(CONTENT)
    damaged[500_000] ^= 4
    path.write_bytes(damaged)
    assert MD5 in refusal(tmp_path)
    assert path.with_name("w.ckpt.bad").read_bytes() == damaged
    assert fetch("w", tmp_path).read_bytes() == CONTENT
    assert server.asked == [0, 0]


def test_a_file_put_there_by_hand_is_verified_once(server, tmp_path, path, monkeypatch):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    hashed = []
    monkeypatch.setattr(pooch, "file_hash", lambda file, alg: hashed.append(file) or MD5)
    for _ in range(3):
        assert fetch("w", tmp_path) == path
    assert hashed == [path] and server.asked == []
    os.utime(path, ns=(0, 0))
    fetch("w", tmp_path)
    assert hashed == [path, path]


@pytest.mark.parametrize("record", [b"", b"{", b"\xff\xfe", b"null"])
def test_a_broken_record_does_not_vouch_for_a_file(server, tmp_path, path, record):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"wrong")
    path.with_name("w.ckpt.verified").write_bytes(record)
    assert MD5 in refusal(tmp_path)


def test_a_record_of_another_md5_does_not_vouch(server, tmp_path):
    fetch("w", tmp_path)
    download.PUBLISHED.write_text(download.PUBLISHED.read_text().replace(MD5, "0" * 32))
    assert "0" * 32 in refusal(tmp_path)


def test_a_sha256_pins_a_file_in_a_folder_of_its_own(server, tmp_path):
    published = json.loads(download.PUBLISHED.read_text())
    entry = published["some"]["w"]
    del entry["md5"]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    entry |= {"sha256": sha256, "folder": "ours"}
    download.PUBLISHED.write_text(json.dumps(published))
    assert fetch("w", tmp_path) == tmp_path / "ours" / "folder" / "w.ckpt"
    assert download.pin_of("w") == ("sha256", sha256)
    (tmp_path / "ours" / "folder" / "w.ckpt").write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=f"has sha256 .* instead of {sha256}"):
        fetch("w", tmp_path, "--inception")


# Other processes


CHILD = """
import sys
from pathlib import Path
from qdiff.files import download
download.PUBLISHED = Path(sys.argv[1]) / "published.json"
print(download.fetch("w", Path(sys.argv[1])))
"""


def child(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_killed_download_is_resumed(server, tmp_path, path):
    server.pause = 0.05
    process = child(tmp_path)
    deadline = time.monotonic() + 30
    while not part_of(path).exists() or part_of(path).stat().st_size < 3 * BLOCK:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part_of(path).stat().st_size
    assert 3 * BLOCK <= kept < len(CONTENT) and not path.exists()
    server.pause = 0
    assert fetch("w", tmp_path).read_bytes() == CONTENT
    assert server.asked == [0, kept]


def test_processes_at_the_same_time_share_one_download(server, tmp_path, path):
    server.pause = 0.05
    processes = [child(tmp_path) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == [str(path)] * 3
    assert server.asked == [0]
    assert path.read_bytes() == CONTENT


def test_importing_loads_nothing_heavy():
    code = "import sys, qdiff.files.download; print({'torch', 'requests', 'pooch', 'tqdm', 'numpy'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# Names


def config(**data):
    return SimpleNamespace(data=SimpleNamespace(**data))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"dataset": "CIFAR10"}, "ema_cifar10"),
        ({"dataset": "LSUN", "category": "bedroom"}, "ema_lsun_bedroom"),
        ({"dataset": "LSUN", "category": "cat"}, "ema_lsun_cat"),
        ({"dataset": "LSUN", "category": "church_outdoor"}, "ema_lsun_church"),
    ],
)
def test_the_name_follows_the_configuration_and_is_published(data, name):
    assert name_for(config(**data)) == name
    entry = json.loads(download.PUBLISHED.read_text())["ddim"][name]
    assert entry["url"].startswith("https://") and len(entry["md5"]) == 32 and not entry["file"].startswith("/")


@pytest.mark.parametrize("data", [{"dataset": "EMOJI32"}, {"dataset": "LSUN", "category": "tower"}])
def test_unpublished_datasets_point_to_the_flag(data):
    with pytest.raises(UserError, match="--ckpt"):
        name_for(config(**data))


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="ema_cifar10"):
        fetch("cifar", tmp_path)
