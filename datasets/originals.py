"""Public originals: fetched once, continued after an interruption, found in a folder, their digests kept.

Where a publisher's SHA-256 is not known, the first download that could be read is trusted: its SHA-256 goes into
SHA256SUMS beside it (`sha256sum -c` reads it) and holds from then on.
"""

from __future__ import annotations

import glob
import logging
import os
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pooch
import requests
from tqdm import tqdm

from datasets.errors import DownloadError, SceneFormatError, SceneNotFoundError
from datasets.readers import sha256
from model.files import PART, replacing

log = logging.getLogger(__name__)

SUMS_FILE = "SHA256SUMS"
ATTEMPTS = 4              # in a row without a single new byte, before giving up
RETRY_WAIT_S = 1.0        # after the first failure; grows with each further one
TIMEOUT_S = 30
CHUNK_BYTES = 1 << 15      # an interruption costs at most the chunk under way
_AGENT = f"pooch/{pooch.__version__} (https://www.fatiando.org/pooch)"   # zenodo throttles nameless clients
_PARTIAL = (requests.codes.partial_content, requests.codes.requested_range_not_satisfiable)   # 206, 416


@dataclass(frozen=True)
class Original:
    """A public file and its address; `sha256` where its publisher's is known."""

    file: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """Where an original lies: a file, or a member of a zip file."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @contextmanager
    def as_file(self, scratch: Path) -> Iterator[Path]:
        """The original as a plain file; a zip's member is unpacked into a folder in `scratch` for the time being."""
        if self.member is None:
            yield self.path
            return
        with TemporaryDirectory(dir=scratch, prefix="unpack-") as folder:
            path = Path(folder) / Path(self.member).name
            try:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as source, \
                        open(path, "wb") as target:
                    shutil.copyfileobj(source, target)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise SceneFormatError(f"{self} is damaged ({error}).") from error
            yield path


class ResumingDownloader:
    """A pooch downloader that keeps what arrived beside `path` (`part_of`) and asks the server for the rest only.

    Where the server states an ETag or a date, the rest is taken only if the file there is still the same (If-Range);
    a server that sends the whole file instead makes the download start again.
    """

    def __init__(self, path: Path, progress: bool):
        self.path, self.part, self.progress = path, part_of(path), progress
        self.validator = self.part.with_name(self.part.name + ".etag")

    def __call__(self, url: str, output_file: str, _pooch: pooch.Pooch | None) -> None:
        failures = 0
        while True:
            before = self._arrived()
            try:
                self._transfer(url)
                break
            except requests.RequestException as error:
                failures = 1 if self._arrived() > before else failures + 1
                if failures >= ATTEMPTS or not _may_pass(error):
                    raise DownloadError(
                        f"{url} cannot be fetched ({_reason(error)}). Run the same command later (it continues at byte "
                        f"{self._arrived()}), or get the file another way, put it at {self.path} and "
                        "run the command again; with --from DIR it reads originals from any folder.") from error
                log.warning("%s: %s; trying again", url, _reason(error))
                time.sleep(RETRY_WAIT_S * failures)
        os.replace(self.part, output_file)
        self.validator.unlink(missing_ok=True)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, url: str) -> None:
        """One request: append to the part what the server sends.  Raises requests.RequestException."""
        offset = self._arrived()
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}     # identity: byte counts mean the file's
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if is_own(self.validator):
                headers["If-Range"] = self.validator.read_text(encoding="latin1")
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if (response.status_code == requests.codes.requested_range_not_satisfiable
                    and response.headers.get("Content-Range") == f"bytes */{offset}"):
                return                                                      # interrupted after the last byte
            rest = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            if response.status_code in _PARTIAL and not rest:
                self.part.unlink(missing_ok=True)
                raise requests.ConnectionError("what arrived before does not fit the server's file, starting again")
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise requests.RequestException("the server sent a web page instead of the file", response=response)
            self._append(response, offset if rest else 0)

    def _append(self, response: requests.Response, offset: int) -> None:
        """Write the response's body into the part from byte `offset` on."""
        state = response.headers.get("ETag", "W/")
        if state.startswith("W/"):                      # a weak one doesn't promise the same bytes (RFC 9110, 13.1.5)
            state = response.headers.get("Last-Modified")
        if state:
            with replacing(self.validator) as file:
                file.write(state.encode("latin1"))
        else:
            self.validator.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=self.path.name,
                   disable=None if self.progress else True)                 # None: only on a terminal
        if not offset:
            self.part.unlink(missing_ok=True)           # a link, perhaps
        with bar, open(self.part, "ab" if offset else "xb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and self._arrived() != total:                  # urllib3 1.x doesn't notice
            raise requests.ConnectionError(f"{self._arrived()} of {total} bytes arrived")


def part_of(path: Path) -> Path:
    """What a broken-off download of a file has left beside it; else a name for it that nobody can foresee."""
    left = [part for part in path.parent.glob(f".*.{glob.escape(path.name)}{PART}") if is_own(part)]
    return left[0] if left else path.with_name(f".{secrets.token_hex(8)}.{path.name}{PART}")


def is_own(path: Path) -> bool:
    """Whether a path is a regular file of this user, under this one name, and no link."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1


def _may_pass(error: requests.RequestException) -> bool:
    """Whether the same request may succeed later: the connection failed, or the server is overloaded."""
    status = None if error.response is None else error.response.status_code
    return status is None or status >= 500 or status == requests.codes.too_many_requests


def _reason(error: requests.RequestException) -> str:
    """What went wrong, without urllib3's wrapping of it."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", None) or error)


def fetch(original: Original, folder: Path, progress: bool) -> Path:
    """The original's path in `folder`, downloaded if it is not there, compared with its known digest if it has one.

    Raises DownloadError.
    """
    path = folder / original.file
    expected = original.sha256 or read_sums(folder).get(original.file)
    if path.exists():
        if expected not in (None, sha256(path)):
            raise DownloadError(f"{path} is not the file it was: its SHA-256 is {sha256(path)}, expected {expected}. "
                                f"Delete it to fetch it again; if the new one is right, delete its line in "
                                f"{folder / SUMS_FILE}.")
        return path
    pooch.get_logger().setLevel(logging.WARNING)        # it would announce each digest; SHA256SUMS holds them
    try:
        pooch.retrieve(original.url, known_hash=expected, fname=original.file, path=folder,
                       downloader=ResumingDownloader(path, progress))
    except ValueError as error:                         # what pooch raises for a digest that differs
        raise DownloadError(f"{original.url} does not hold the file it held before: {original.file} should have the "
                            f"SHA-256 {expected}. Try again in case the transfer broke it; if the new one is right, "
                            f"delete its line in {folder / SUMS_FILE}.") from error
    return path


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> digest, of SHA256SUMS in `folder` (empty where there is none)."""
    path = folder / SUMS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return {name.strip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}


def record_sums(paths: Iterable[Path], folder: Path) -> None:
    """Add the digests of files in `folder` to its SHA256SUMS, those already there unchanged."""
    known = read_sums(folder)
    sums = {path.name: sha256(path) for path in paths if path.name not in known} | known
    with replacing(folder / SUMS_FILE) as file:
        file.write("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode())


def find_originals(names: Sequence[str], folder: Path, archive: str | None) -> dict[str, Found]:
    """Search `folder` and all below for files, then for those missing in the zip file `archive` if it lies there.

    An exact name goes before one that differs in case only.  Names not found are left out; raises SceneNotFoundError
    where several files could be meant, SceneFormatError for a damaged zip file.
    """
    files = [Found(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {name: hit for name in names if (hit := _pick(name, files))}
    if archive and len(found) < len(names) and (packed := _pick(archive, files)):
        try:
            with zipfile.ZipFile(packed.path) as content:
                members = [Found(packed.path, member) for member in content.namelist()]
        except zipfile.BadZipFile as error:
            raise SceneFormatError(f"{packed} is damaged ({error}). Delete it and fetch it again.") from error
        found |= {name: hit for name in names if name not in found and (hit := _pick(name, members))}
    return found


def _pick(name: str, candidates: list[Found]) -> Found | None:
    hits = [hit for hit in candidates if Path(hit.member or hit.path).name.lower() == name.lower()]
    hits = [hit for hit in hits if Path(hit.member or hit.path).name == name] or hits
    if len(hits) > 1:
        raise SceneNotFoundError(f"{name} is there more than once: {', '.join(map(str, hits))}. Keep one of them, or "
                                 "name the folder that holds the right one.")
    return hits[0] if hits else None
