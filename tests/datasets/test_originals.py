"""Downloads against a local server: resumed, retried, compared with their digests."""

import hashlib

import numpy as np
import pytest

from datasets import originals
from datasets.errors import DownloadError
from datasets.originals import ATTEMPTS, CHUNK_BYTES, Original, fetch
from local_server import running_server


@pytest.fixture
def server():
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(originals, "RETRY_WAIT_S", 0.0)


def test_an_interrupted_transfer_continues_where_it_stopped(tmp_path, server):
    body = np.random.default_rng(0).bytes(10 * CHUNK_BYTES + 123)
    server.files, server.cuts = {"PaviaU.mat": body}, {"PaviaU.mat": [4 * CHUNK_BYTES, 7 * CHUNK_BYTES]}
    path = fetch(Original("PaviaU.mat", server.url("PaviaU.mat")), tmp_path, progress=False)
    assert path.read_bytes() == body
    assert [asked for _, asked in server.requests] == [None, f"bytes={4 * CHUNK_BYTES}-", f"bytes={7 * CHUNK_BYTES}-"]
    assert [item.name for item in tmp_path.iterdir()] == ["PaviaU.mat"]


def test_a_later_run_continues_what_an_earlier_one_left(tmp_path, server):
    body = np.random.default_rng(1).bytes(3 * CHUNK_BYTES)
    source = Original("a.mat", server.url("a.mat"))
    server.files, server.cuts = {"a.mat": body}, {"a.mat": [CHUNK_BYTES] * (ATTEMPTS + 1)}   # progress once, then none
    with pytest.raises(DownloadError, match=f"continues at byte {CHUNK_BYTES}"):
        fetch(source, tmp_path, progress=False)
    assert not (tmp_path / "a.mat").exists()
    assert len(server.requests) == ATTEMPTS
    server.cuts.clear()
    server.requests.clear()
    assert fetch(source, tmp_path, progress=False).read_bytes() == body
    assert server.requests == [("a.mat", f"bytes={CHUNK_BYTES}-")]


@pytest.mark.parametrize("ranges, etags", [(False, True), (True, True), (True, False)])
def test_a_part_that_cannot_be_continued_is_fetched_anew(tmp_path, server, ranges, etags):
    """No ranges; another file by its ETag; a part longer than the file."""
    body = np.random.default_rng(2).bytes(30_000)
    server.files, server.ranges, server.etags = {"a.mat": body}, ranges, etags
    (tmp_path / "a.mat.part").write_bytes(b"x" * (10_000 if etags else 40_000))
    if etags:
        (tmp_path / "a.mat.part.etag").write_text('"of another file"')
    assert fetch(Original("a.mat", server.url("a.mat")), tmp_path, progress=False).read_bytes() == body
    assert [item.name for item in tmp_path.iterdir()] == ["a.mat"]


def test_a_part_that_is_complete_is_not_fetched_again(tmp_path, server):
    body = b"0123456789" * 100
    server.files = {"a.mat": body}
    (tmp_path / "a.mat.part").write_bytes(body)
    assert fetch(Original("a.mat", server.url("a.mat")), tmp_path, progress=False).read_bytes() == body
    assert server.requests == [("a.mat", f"bytes={len(body)}-")]


def test_an_overloaded_server_is_asked_again_a_missing_file_is_not(tmp_path, server):
    server.files, server.failures = {"a.mat": b"abc"}, [503, 429]
    fetch(Original("a.mat", server.url("a.mat")), tmp_path, progress=False)
    assert len(server.requests) == 3
    with pytest.raises(DownloadError, match="404"):
        fetch(Original("b.mat", server.url("b.mat")), tmp_path, progress=False)
    assert len(server.requests) == 4


def test_a_web_page_instead_of_the_file_is_an_error(tmp_path, server):
    server.files, server.content_type = {"a.mat": b"<html>log in first</html>"}, "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        fetch(Original("a.mat", server.url("a.mat")), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_published_digest_is_held_against_the_download(tmp_path, server):
    server.files = {"a.mat": b"abc"}
    with pytest.raises(DownloadError, match="a.mat should have the SHA-256 0000"):
        fetch(Original("a.mat", server.url("a.mat"), sha256="0" * 64), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    right = Original("a.mat", server.url("a.mat"), sha256=hashlib.sha256(b"abc").hexdigest())
    assert fetch(right, tmp_path, progress=False).read_bytes() == b"abc"
