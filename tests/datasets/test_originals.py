"""Downloads against a local server: resumed, retried, compared with their digests."""

import hashlib
import os

import numpy as np
import pytest
import requests

from datasets import originals
from datasets.errors import DownloadError
from datasets.originals import ATTEMPTS, CHUNK_BYTES, Original, fetch, part_of
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
    (tmp_path / ".0.a.mat.part").write_bytes(b"x" * (10_000 if etags else 40_000))
    if etags:
        (tmp_path / ".0.a.mat.part.etag").write_text('"of another file"')
    assert fetch(Original("a.mat", server.url("a.mat")), tmp_path, progress=False).read_bytes() == body
    assert [item.name for item in tmp_path.iterdir()] == ["a.mat"]


def test_what_another_has_put_in_a_parts_place_is_neither_read_nor_written(tmp_path, server):
    """Links under any name that a part, or what is kept beside it, has or had."""
    server.files, precious = {"a.mat": b"abc"}, tmp_path / "precious"
    precious.write_text("precious")
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("a.mat.part", "a.mat.part.etag", ".0.a.mat.part", ".0.a.mat.part.etag"):
        (folder / name).symlink_to(precious)
    os.link(precious, folder / ".1.a.mat.part")
    assert fetch(Original("a.mat", server.url("a.mat")), folder, progress=False).read_bytes() == b"abc"
    assert precious.read_text() == "precious" and server.requests == [("a.mat", None)]


def test_what_is_kept_beside_a_part_may_be_no_link(tmp_path, server):
    """Its content goes to the server."""
    server.files, precious = {"a.mat": b"abc"}, tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".0.a.mat.part").write_bytes(b"a")
    (tmp_path / ".0.a.mat.part.etag").symlink_to(precious)
    asked, plain = [], requests.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "get", lambda url, **more: asked.append(more["headers"]) or plain(url, **more))
        assert fetch(Original("a.mat", server.url("a.mat")), tmp_path, progress=False).read_bytes() == b"abc"
    assert asked[0]["Range"] == "bytes=1-" and "If-Range" not in asked[0] and precious.read_text() == "precious"


def test_a_part_has_a_name_that_nobody_can_foresee(tmp_path):
    first, second = part_of(tmp_path / "a.mat"), part_of(tmp_path / "a.mat")
    assert first != second and len(first.name) > len(".a.mat.part") + 15
    first.touch()
    assert part_of(tmp_path / "a.mat") == first and part_of(tmp_path / "b.mat") != first


def test_a_part_that_is_complete_is_not_fetched_again(tmp_path, server):
    body = b"0123456789" * 100
    server.files = {"a.mat": body}
    (tmp_path / ".0.a.mat.part").write_bytes(body)
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
