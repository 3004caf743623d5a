"""Small files in the formats of the benchmark's public originals, and what their conversion must give."""

import zipfile

import numpy as np
import rasterio
import scipy.io

from datasets.formats import read_mat
from datasets.writers import write_mat_v5

PAVIA_U = {0: 0, 1: 2, 2: 6, 3: 0, 4: 1, 5: 0, 6: 7, 7: 4, 8: 3, 9: 5}       # docs/data.md, "Originals"; 0 = left out
PAVIA_C = {0: 0, 1: 0, 2: 1, 3: 6, 4: 3, 5: 7, 6: 2, 7: 4, 8: 0, 9: 5}
OUT_68 = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 0, 7: 6, 8: 0, 9: 7, 10: 8, 11: 9, 12: 10, 13: 11, 14: 12}
HOUSTON_FILES = ("Houston13.mat", "Houston13_7gt.mat", "Houston18.mat", "Houston18_7gt.mat")


def cube_of(shape, seed):
    return np.random.default_rng(seed).integers(1, 8000, shape, dtype=np.uint16)


def labels_of(shape, classes):
    """Every class 0..classes at least once."""
    return np.resize(np.arange(classes + 1, dtype=np.uint8), shape)


def write_pavia(folder):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {("PaviaU.mat", "paviaU"): cube_of((12, 7, 103), 1), ("PaviaU_gt.mat", "paviaU_gt"): labels_of((12, 7), 9),
              ("Pavia.mat", "pavia"): cube_of((6, 13, 102), 2), ("Pavia_gt.mat", "pavia_gt"): labels_of((6, 13), 9)}
    for (file, key), array in arrays.items():
        scipy.io.savemat(folder / file, {key: array})
    return {file: array for (file, _), array in arrays.items()}


def write_geotiff(path, array):
    """[H, W, B] as a GeoTIFF."""
    height, width, count = array.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype,
                       crs="EPSG:32634", transform=rasterio.Affine(30, 0, 5e5, 0, -30, 4.3e6)) as file:
        file.write(np.moveaxis(array, 2, 0))


def write_hyrank(folder):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"Dioni.tif": cube_of((9, 16, 176), 3).astype(np.int16), "Dioni_GT.tif": labels_of((9, 16, 1), 14),
              "Loukia.tif": cube_of((5, 11, 176), 4).astype(np.int16), "Loukia_GT.tif": labels_of((5, 11, 1), 14)}
    for file, array in arrays.items():
        write_geotiff(folder / file, array)
    return arrays


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.glob("*.tif")):
            archive.write(file, f"HyRANK_satellite/TrainingSet/{file.name}")
        archive.writestr("__MACOSX/TrainingSet/._Dioni.tif", b"resource fork")
        archive.writestr("HyRANK_satellite/ValidationSet/Erato.tif", b"not needed, not read")
    return path


def write_houston(folder, write=write_mat_v5):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, scene in enumerate(("Houston13", "Houston18")):
        write(folder / f"{scene}.mat", {"ori_data": cube_of((8, 10, 48), seed)})
        write(folder / f"{scene}_7gt.mat", {"map": labels_of((8, 10), 7)})


def serve(server, folder):
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return server.sources()


def mapped(labels, classes):
    return np.vectorize(classes.get)(labels)


def assert_pavia(out, arrays):
    np.testing.assert_array_equal(read_mat(out / "paviaU.mat", "ori_data"), arrays["PaviaU.mat"][:, :, :102])
    np.testing.assert_array_equal(read_mat(out / "paviaC.mat", "ori_data"), arrays["Pavia.mat"])
    np.testing.assert_array_equal(read_mat(out / "paviaU_7gt.mat", "map"), mapped(arrays["PaviaU_gt.mat"], PAVIA_U))
    np.testing.assert_array_equal(read_mat(out / "paviaC_7gt.mat", "map"), mapped(arrays["Pavia_gt.mat"], PAVIA_C))


def assert_hyrank(out, arrays):
    for scene in ("Dioni", "Loukia"):
        np.testing.assert_array_equal(read_mat(out / f"{scene}.mat", "ori_data"), arrays[f"{scene}.tif"])
        np.testing.assert_array_equal(read_mat(out / f"{scene}_gt_out68.mat", "map"),
                                      mapped(arrays[f"{scene}_GT.tif"][:, :, 0], OUT_68))
