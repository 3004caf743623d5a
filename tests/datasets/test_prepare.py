"""`prepare` against a local server and small files in the originals' formats."""

import hashlib
import logging
import zipfile

import numpy as np
import pytest
import scipy.io

from datasets import originals as downloads
from datasets.benchmark import BENCHMARK
from datasets.errors import DownloadError, SceneFormatError, SceneNotFoundError
from datasets.originals import Original
from datasets.prepare import PAIRS, RECORD_FILE, SOURCES, prepare
from datasets.formats import read_mat
from datasets.writers import write_mat_v5, write_mat_v73
from local_server import running_server
from model.errors import ConfigError
from original_files import (HOUSTON_FILES, PAVIA_U, assert_hyrank, assert_pavia, cube_of, labels_of, serve,
                            write_houston, write_hyrank, write_pavia, zip_of)


@pytest.fixture
def server():
    with running_server() as running:
        yield running


def test_pavia_is_fetched_and_converted(tmp_path, server):
    arrays = write_pavia(tmp_path / "web")
    sources = serve(server, tmp_path / "web")
    out = tmp_path / "datasets" / "Pavia"
    written = prepare("pavia", out, sources=sources, progress=False)
    assert [path.name for path in written] == ["paviaU.mat", "paviaU_7gt.mat", "paviaC.mat", "paviaC_7gt.mat"]
    assert_pavia(out, arrays)
    assert read_mat(out / "paviaU.mat", "ori_data").dtype == np.uint16
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [path.name for path in written] + ["originals", "prepared.json"])          # no .part, no scratch folder
    assert sorted(path.name for path in (out / "originals").iterdir()) == sorted([*sources, "SHA256SUMS"])


def test_hyrank_is_fetched_unzipped_and_converted(tmp_path, server):
    arrays = write_hyrank(tmp_path / "tif")
    (tmp_path / "web").mkdir()
    zip_of(tmp_path / "tif", tmp_path / "web" / "HyRANK_satellite.zip")
    out = tmp_path / "HyRANK"
    prepare("hyrank", out, sources=serve(server, tmp_path / "web"), progress=False)
    assert_hyrank(out, arrays)
    assert sorted(path.name for path in out.iterdir()) == [
        "Dioni.mat", "Dioni_gt_out68.mat", "Loukia.mat", "Loukia_gt_out68.mat", "originals", "prepared.json"]


@pytest.mark.parametrize("pair, write, check", [("pavia", write_pavia, assert_pavia),
                                                ("hyrank", write_hyrank, assert_hyrank)])
def test_from_a_folder_that_holds_the_originals_deeper_and_in_other_case(tmp_path, pair, write, check):
    arrays = write(tmp_path / "disk" / "deep")
    for path in (tmp_path / "disk" / "deep").iterdir():
        path.rename(path.with_name(path.name.upper()))
    prepare(pair, tmp_path / "out", tmp_path / "disk")
    check(tmp_path / "out", arrays)
    assert not (tmp_path / "out" / "originals").exists()


def test_from_a_folder_with_the_zip(tmp_path):
    arrays = write_hyrank(tmp_path / "tif")
    (tmp_path / "disk").mkdir()
    zip_of(tmp_path / "tif", tmp_path / "disk" / "hyrank_SATELLITE.zip")
    prepare("hyrank", tmp_path / "out", tmp_path / "disk")
    assert_hyrank(tmp_path / "out", arrays)


@pytest.mark.parametrize("write", [write_mat_v5, write_mat_v73])
def test_houston_files_are_checked_and_normalised(tmp_path, write, caplog):
    write_houston(tmp_path / "disk", write)
    written = prepare("houston", tmp_path / "out", tmp_path / "disk")
    assert tuple(path.name for path in written) == HOUSTON_FILES
    assert "Houston13 is 8×10×48, the benchmark's is 210×954×48" in caplog.text
    for name in HOUSTON_FILES:
        key = "map" if "gt" in name else "ori_data"
        content = scipy.io.loadmat(tmp_path / "out" / name)                        # v5, whatever came in
        np.testing.assert_array_equal(content[key], read_mat(tmp_path / "disk" / name, key))


def test_houston_without_a_folder_says_what_to_bring_where(tmp_path):
    out = tmp_path / "Houston"
    with pytest.raises(SceneNotFoundError) as error:
        prepare("houston", out)
    for part in (*HOUSTON_FILES, "forbid redistribution", "ee.uh.edu", str(out), "--from"):
        assert part in str(error.value)
    write_houston(out)
    assert prepare("houston", out) == []                                           # they are there: nothing to say


def test_true_size_scene_with_the_benchmarks_counts_passes_without_a_warning(tmp_path, caplog):
    """A label map in the original's classes with the table's counts; only paviaC's small stand-in is warned about."""
    arrays = write_pavia(tmp_path / "disk")
    scene = BENCHMARK["paviaU"]
    original = [old for new in range(1, 8) for old, to in PAVIA_U.items() if to == new]
    labels = np.zeros(610 * 340, np.uint8)
    labels[:sum(scene.class_counts)] = np.repeat(original, scene.class_counts)
    labels[-5:] = 3                                                                # gravel, left out
    scipy.io.savemat(tmp_path / "disk" / "PaviaU_gt.mat", {"paviaU_gt": labels.reshape(610, 340)}, do_compression=True)
    cube = np.broadcast_to(arrays["PaviaU.mat"][:1, :1], (610, 340, 103))
    scipy.io.savemat(tmp_path / "disk" / "PaviaU.mat", {"paviaU": cube}, do_compression=True)
    prepare("pavia", tmp_path / "out", tmp_path / "disk")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings and all("paviaC" in text for text in warnings)


def test_loukia_from_the_public_map_says_why_it_differs(tmp_path, caplog):
    write_hyrank(tmp_path / "disk")
    prepare("hyrank", tmp_path / "out", tmp_path / "disk")
    assert "12208 labelled pixels" in caplog.text and "Loukia_gt_out68.mat" in caplog.text


def test_no_server_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "RETRY_WAIT_S", 0.0)
    sources = {name: Original(name, f"http://127.0.0.1:9/{name}") for name in SOURCES}   # nothing listens there
    with pytest.raises(DownloadError) as error:
        prepare("pavia", tmp_path / "out", sources=sources, progress=False)
    for part in ("http://127.0.0.1:9/PaviaU.mat", str(tmp_path / "out" / "originals" / "PaviaU.mat"), "--from DIR"):
        assert part in str(error.value)


def test_digests_are_kept_and_hold_on_later_runs(tmp_path, server):
    write_pavia(tmp_path / "web")
    sources, out = serve(server, tmp_path / "web"), tmp_path / "out"
    prepare("pavia", out, sources=sources, progress=False)
    sums = (out / "originals" / "SHA256SUMS").read_text()
    digest = hashlib.sha256(server.files["PaviaU.mat"]).hexdigest()
    assert f"{digest}  PaviaU.mat\n" in sums and len(sums.splitlines()) == 4
    local = out / "originals" / "PaviaU.mat"
    local.write_bytes(local.read_bytes()[:-1] + b"!")
    with pytest.raises(DownloadError, match="PaviaU.mat is not the file it was"):
        prepare("pavia", out, sources=sources, progress=False)
    local.unlink()
    server.files["PaviaU.mat"] += b"!"                          # now the server's copy has changed
    with pytest.raises(DownloadError, match="PaviaU.mat should have the SHA-256 " + digest):
        prepare("pavia", out, sources=sources, progress=False)
    assert not local.exists()
    assert (out / "originals" / "SHA256SUMS").read_text() == sums


def test_a_download_that_cannot_be_read_is_not_trusted(tmp_path, server):
    write_pavia(tmp_path / "web")
    sources = serve(server, tmp_path / "web")
    whole = server.files["PaviaU.mat"]
    server.files["PaviaU.mat"] = whole[:len(whole) // 2]
    with pytest.raises(SceneFormatError, match="delete a damaged download"):
        prepare("pavia", tmp_path / "out", sources=sources, progress=False)
    assert not (tmp_path / "out" / "originals" / "SHA256SUMS").exists()
    server.files["PaviaU.mat"] = whole
    (tmp_path / "out" / "originals" / "PaviaU.mat").unlink()
    assert len(prepare("pavia", tmp_path / "out", sources=sources, progress=False)) == 4


def test_finished_files_are_skipped_until_their_original_changes(tmp_path, caplog):
    caplog.set_level(logging.INFO, "datasets.prepare")
    write_pavia(tmp_path / "disk")
    out = tmp_path / "out"
    prepare("pavia", out, tmp_path / "disk")
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mat")}
    assert prepare("pavia", out, tmp_path / "disk") == []
    assert "paviaC.mat is up to date" in caplog.text
    scipy.io.savemat(tmp_path / "disk" / "Pavia_gt.mat", {"pavia_gt": np.full((6, 13), 2, np.uint8)})
    assert prepare("pavia", out, tmp_path / "disk") == [out / "paviaC_7gt.mat"]
    assert (read_mat(out / "paviaC_7gt.mat", "map") == 1).all()
    second = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mat")}
    assert {name for name in first if first[name] != second[name]} == {"paviaC_7gt.mat"}
    assert len(prepare("pavia", out, tmp_path / "disk", overwrite=True)) == 4


def test_files_of_the_user_are_left_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO, "datasets.prepare")
    write_hyrank(tmp_path / "disk")
    out = tmp_path / "out"
    out.mkdir()
    (out / "Loukia_gt_out68.mat").write_bytes(b"the community's")
    written = prepare("hyrank", out, tmp_path / "disk")
    assert [path.name for path in written] == ["Dioni.mat", "Dioni_gt_out68.mat", "Loukia.mat"]
    assert (out / "Loukia_gt_out68.mat").read_bytes() == b"the community's"
    assert "Loukia_gt_out68.mat was not written by this command" in caplog.text
    assert "Loukia has" not in caplog.text and "12208" not in caplog.text      # a map not written is not judged
    prepare("hyrank", out, tmp_path / "disk", overwrite=True)
    assert read_mat(out / "Loukia_gt_out68.mat", "map").shape == (5, 11)


def test_complete_files_are_not_downloaded_again(tmp_path, server):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("paviaU.mat", "paviaU_7gt.mat", "paviaC.mat", "paviaC_7gt.mat"):
        (out / name).write_bytes(b"the community's")
    assert prepare("pavia", out, sources={}, progress=False) == []


def test_missing_originals_are_named_with_their_address(tmp_path):
    write_hyrank(tmp_path / "disk")
    (tmp_path / "disk" / "Loukia_GT.tif").unlink()
    with pytest.raises(SceneNotFoundError) as error:
        prepare("hyrank", tmp_path / "out", tmp_path / "disk")
    assert str(error.value).startswith("Loukia_GT.tif not found in")
    assert "https://zenodo.org/records/1222202" in str(error.value) and "HyRANK_satellite.zip" in str(error.value)
    with pytest.raises(SceneNotFoundError, match="is not a folder"):
        prepare("hyrank", tmp_path / "out", tmp_path / "nowhere")


def test_two_files_of_one_name_are_ambiguous_an_exact_name_goes_first(tmp_path):
    arrays = write_pavia(tmp_path / "disk")
    (tmp_path / "disk" / "community").mkdir()
    (tmp_path / "disk" / "community" / "paviaU.mat").write_bytes(b"another file, another case")
    prepare("pavia", tmp_path / "out", tmp_path / "disk")
    assert_pavia(tmp_path / "out", arrays)
    (tmp_path / "disk" / "copy").mkdir()
    (tmp_path / "disk" / "copy" / "Pavia.mat").write_bytes(b"")
    with pytest.raises(SceneNotFoundError, match="more than once") as error:
        prepare("pavia", tmp_path / "out", tmp_path / "disk")
    assert str(tmp_path / "disk" / "copy" / "Pavia.mat") in str(error.value)
    assert str(tmp_path / "disk" / "Pavia.mat") in str(error.value)


def test_wrong_content_is_named_and_nothing_is_written(tmp_path):
    disk, out = tmp_path / "disk", tmp_path / "out"
    write_pavia(disk)
    scipy.io.savemat(disk / "PaviaU.mat", {"ori_data": cube_of((12, 7, 102), 1)})
    with pytest.raises(SceneFormatError, match="no variable 'paviaU'; it holds ori_data"):
        prepare("pavia", out, disk)
    scipy.io.savemat(disk / "PaviaU.mat", {"paviaU": cube_of((12, 8, 103), 1)})
    with pytest.raises(SceneFormatError, match="same image"):
        prepare("pavia", out, disk)
    write_pavia(disk)
    scipy.io.savemat(disk / "PaviaU_gt.mat", {"paviaU_gt": labels_of((12, 7), 16)})
    with pytest.raises(SceneFormatError, match="the labels 10, 11, 12, 13, 14, but the original has only 0..9"):
        prepare("pavia", out, disk)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("file", ["Dioni.tif", "HyRANK_satellite.zip"])
def test_a_truncated_original_is_named(tmp_path, file):
    disk = tmp_path / "disk"
    write_hyrank(disk)
    if file.endswith(".zip"):
        zip_of(disk, disk / file)
        for path in disk.glob("*.tif"):
            path.unlink()
    content = (disk / file).read_bytes()
    (disk / file).write_bytes(content[:len(content) // 2])
    with pytest.raises(SceneFormatError, match=file):
        prepare("hyrank", tmp_path / "out", disk)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    write_hyrank(tmp_path / "tif")
    (tmp_path / "disk").mkdir()
    path = zip_of(tmp_path / "tif", tmp_path / "disk" / "HyRANK_satellite.zip")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("HyRANK_satellite/TrainingSet/Dioni.tif").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 2000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(SceneFormatError, match="Dioni.tif is damaged"):
        prepare("hyrank", tmp_path / "out", tmp_path / "disk")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_and_an_unknown_pair(tmp_path):
    write_pavia(tmp_path / "disk")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be prepared in"):
        prepare("pavia", tmp_path / "file" / "out", tmp_path / "disk")
    with pytest.raises(ConfigError, match="choose pavia, hyrank, houston"):
        prepare("indian", tmp_path / "out")


def test_the_public_table_names_every_download_once_over_https():
    wanted = [file for pair in PAIRS.values() for file in pair.downloads]
    assert sorted(wanted) == sorted(SOURCES)
    assert all(source.url.startswith("https://") and file in source.url for file, source in SOURCES.items())


def test_a_damaged_record_of_what_was_made_is_named(tmp_path):
    disk, out = tmp_path / "disk", tmp_path / "out"
    write_pavia(disk)
    out.mkdir()
    (out / RECORD_FILE).write_text("{")
    with pytest.raises(ConfigError, match=f"{RECORD_FILE} is damaged .* Delete it"):
        prepare("pavia", out, disk)
    assert [path.name for path in out.iterdir()] == [RECORD_FILE]
