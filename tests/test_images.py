import io
import itertools
import json
import os
import shutil
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("PIL", reason="Pillow comes with the extra `vision`")
pytest.importorskip("sklearn", reason="scikit-learn comes with the extra `vision`")

from PIL import Image

from benchmarks import decoding as bench_images
from jaxexp.base.errors import UserError
from jaxexp.execution.devices import cores
from jaxexp.reproduce.images import cache as cache_module
from jaxexp.reproduce.images import decode, photos
from jaxexp.reproduce.images.decode import Transform
from jaxexp.reproduce.images.loading import Images, load_images

SPLITS = ("train", "val", "test")
SMALL = Transform((8, 6))


def picture(seed: int, height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, three splits, two images of each."""
    folder = tmp_path / "photos"
    for i, (split, name, number) in enumerate(itertools.product(SPLITS, ("a", "b"), "01")):
        path = folder / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i)))
    return folder


@pytest.fixture
def load(folder, tmp_path):
    def load(transform: Transform = SMALL, folder: Path | None = folder, **options) -> Images:
        return load_images(folder, transform, **{"cache": tmp_path / "cache"} | options)

    return load


class Count:
    """Progress that counts what is decoded."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def pixels(images: Images) -> np.ndarray:
    splits = (images.train, images.validation, images.test)
    return np.concatenate([split.x_NxHxWx3 for split in splits])


# Pixels


def theirs(transform: Transform):
    from torchvision import transforms

    resize = transforms.Resize(transform.resize)
    return transforms.Compose(
        [resize] + ([transforms.CenterCrop(transform.crop)] if transform.crop else [])
    )


def write_crops(folder: Path) -> Path:
    """Photographs of many shapes and kinds, as JPEG and PNG, in two classes and three splits."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    shapes = [(40, 40), (61, 90), (133, 70), (31, 200), (257, 20), (224, 225), (1, 3)]
    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")]
    kinds += [("LA", "PNG"), ("1", "PNG"), ("RGB", "JPEG")]
    for i, (shape, (mode, kind)) in enumerate(itertools.product(shapes, kinds)):
        photo = load_sample_images().images[i % 2]
        y, x = rng.integers(0, np.array(photo.shape[:2]) - shape)
        image = Image.fromarray(photo[y : y + shape[0], x : x + shape[1]]).convert(mode)
        if "A" in mode:
            image.putalpha(image.convert("L"))
        path = folder / SPLITS[i % 3] / "ab"[i // 3 % 2] / f"{'in/' * (i % 5 == 0)}{i}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, kind, **({"transparency": 3} if mode == "P" else {})))
    return folder


def link_cats_and_dogs(folder: Path) -> Path:
    shared = Path(os.environ["JAXEXP_SHARED"]) / "data" / "cats_dogs"
    for split, name in itertools.product(SPLITS, ("cat", "dog")):
        (folder / split / name).mkdir(parents=True)
        for path in sorted((shared / split / name).iterdir())[::20]:
            (folder / split / name / path.name).symlink_to(path)
    return folder


needs_shared = pytest.mark.skipif(
    "JAXEXP_SHARED" not in os.environ,
    reason="JAXEXP_SHARED does not name a folder with data/cats_dogs, small photographs",
)


LONG = {"marks": pytest.mark.nightly}


@pytest.mark.parametrize(
    "transform",
    [
        *(pytest.param(Transform(*own), **LONG) for own in ((224, 64), ((64, 64),))),
        Transform((50, 81)),
        pytest.param(Transform(256, 224), **LONG),
        Transform(20, 33),  # the crop is larger
        Transform(41, 20),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "write", [write_crops, pytest.param(link_cats_and_dogs, marks=needs_shared)]
)
def test_images_are_those_of_torchvision(write, transform, tmp_path, torchvision):
    images = load_images(write(tmp_path / "photos"), transform, cache=tmp_path / "cache")
    for name, split in zip(SPLITS, (images.train, images.validation, images.test), strict=True):
        expected = torchvision.datasets.ImageFolder(tmp_path / "photos" / name, theirs(transform))
        assert images.classes == tuple(expected.classes)
        assert split.y_N.tolist() == expected.targets
        assert [tmp_path / "photos" / f for f in split.files] == [
            Path(path) for path, _ in expected.samples
        ]
        for x_HxWx3, (image, _) in zip(split.x_NxHxWx3, expected, strict=True):
            np.testing.assert_array_equal(x_HxWx3, np.asarray(image))


sizes = st.integers(1, 50)


@given(size=st.tuples(sizes, sizes), resize=sizes | st.tuples(sizes, sizes), crop=sizes)
def test_sizes_and_margins_are_those_of_torchvision(torchvision, size, resize, crop):
    image, transform = picture(0, *size), Transform(resize, crop)
    np.testing.assert_array_equal(transform(image), np.asarray(theirs(transform)(image)))
    assert transform(image).shape == transform.shape == (crop, crop, 3)


def test_transparency_is_dropped(tmp_path):
    image = picture(0)
    transparent = image.copy()
    transparent.putalpha(0)
    transparent.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode.read_image(tmp_path / "a.png"), image)


def test_exif_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn to see it upright
    plain, turned = encoded(picture(0)), encoded(picture(0), exif=exif)
    (tmp_path / "a.jpg").write_bytes(turned)
    assert turned != plain
    np.testing.assert_array_equal(
        decode.read_image(tmp_path / "a.jpg"), Image.open(io.BytesIO(plain))
    )


def png_of_16_bits(levels_HxWxC: np.ndarray) -> bytes:
    """Pillow writes no colours of 16 bits."""
    height, width, channels = levels_HxWxC.shape
    rows = levels_HxWxC.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled(tmp_path, channels):
    levels = np.array([0, 255, 256, 0x7FFF, 0x8000, 0xFFFF])
    levels_HxWxC = np.repeat(levels.reshape(2, 3, 1), channels, axis=2)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(levels_HxWxC))
    x_HxWx3 = np.asarray(decode.read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(x_HxWx3, np.repeat(levels.reshape(2, 3, 1) >> 8, 3, axis=2))


@pytest.mark.parametrize("levels", [np.array([[1e5]], np.int32), np.array([[0.5]], np.float32)])
def test_levels_without_a_range_are_refused(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(decode.BrokenImageError, match="expected 8 or 16"):
        decode.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "arguments", [(0,), ((4, 0),), ((4, 4, 4),), ((),), (4.0, 4), (True, 4), (4, 0), (4, "4"), (4,)]
)
def test_bad_transforms_are_told(arguments):
    with pytest.raises(UserError, match="expected"):
        Transform(*arguments)


# Layout


def test_splits_classes_and_files(load, folder):
    (folder / "train" / "a" / "Thumbs.db").write_bytes(b"no image")
    (folder / "train" / "a" / "notes.txt").write_bytes(b"no image")
    (folder / "labels.csv").write_bytes(b"no image")
    images = load()
    assert images.classes == ("a", "b")
    assert images.train.files == tuple(f"train/{c}/{n}.jpg" for c in "ab" for n in "01")
    assert images.validation.files[-1] == "val/b/1.jpg"
    assert images.test.y_N.tolist() == [0, 0, 1, 1]
    assert images.test.y_N.dtype == np.int32
    assert (images.source, images.skipped) == (str(folder), ())
    assert isinstance(images.train.x_NxHxWx3, np.memmap)
    assert not images.train.x_NxHxWx3.flags.writeable
    assert images.train.x_NxHxWx3.shape == (4, 8, 6, 3)


def remove(*names: str):
    return lambda folder: [shutil.rmtree(folder / name) for name in names]


def write(name: str, content: bytes):
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def empty_class(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "a")
    write("val/a/readme.txt", b"")(folder)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "train" / "a" / "2.jpg")


BAD_LAYOUTS = [
    (remove("val"), "photos: there is no val/, expected one with train/, val/ and test/"),
    (remove("train", "test"), "photos: there is no train/ and no test/, expected"),
    (remove(""), "photos: no such folder, expected one with train/"),
    (remove("train/a", "val/a", "test/a"), "train: only the class 'b', expected a folder for each"),
    (remove("train/a", "train/b"), "train: no folder in it, expected a folder for each of two"),
    (remove("val/a"), "val: its classes are not those of train/ ('a' in one alone), expected"),
    (write("test/c/0.jpg", b""), "test: its classes are not those of train/ ('c' in one alone)"),
    (empty_class, "val/a: no image in it, expected files named .jpg"),
    pytest.param(
        (pipe, "train/a/2.jpg: not a file, expected an image"),
        marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here"),
    ),
]


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_bad_layouts_are_told_before_anything_is_decoded(load, folder, case):
    change, message = case
    change(folder)
    progress = Count()
    with pytest.raises(UserError) as told:
        load(progress=progress)
    assert message in str(told.value).replace(os.sep, "/")
    assert not progress.calls


def test_a_file_is_no_folder(load, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file: not a folder, expected one with train/"):
        load(folder=tmp_path / "file")


def test_a_missing_library_is_told(load, monkeypatch):
    monkeypatch.setitem(os.sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"images need PIL.*pip install 'jaxexp\[vision\]'"):
        load()


# Broken files

WHOLE = encoded(picture(99, 100, 120))
BROKEN = {
    "text": (b"a photograph of a cat", "is not an image, expected JPEG or PNG"),
    "empty": (b"", "is not an image"),
    "cut off": (WHOLE[: len(WHOLE) // 2], "cannot be decoded"),
    "cut off, PNG": (encoded(picture(99), "PNG")[:-200], "cannot be decoded"),
}


@pytest.mark.parametrize("content", BROKEN)
def test_broken_files_are_told(load, folder, content):
    data, message = BROKEN[content]
    (folder / "val" / "b" / "0.jpg").write_bytes(data)
    with pytest.raises(UserError, match=message) as told:
        load()
    assert str(folder / "val" / "b" / "0.jpg") in str(told.value)
    assert "skip_broken" in str(told.value)


@pytest.mark.parametrize("factor", [1, 3])  # Pillow warns from the limit, refuses from its double
def test_huge_images_are_told(load, folder, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 24)
    (folder / "train" / "a" / "1.jpg").write_bytes(encoded(picture(0, 20 * factor, 25)))
    with pytest.raises(UserError, match=r"train.a.1.jpg: has more pixels than 480"):
        load()


def test_slivers_are_told(load, folder):
    (folder / "train" / "a" / "1.png").write_bytes(encoded(picture(0, 1, 10_000), "PNG"))
    with pytest.raises(UserError, match=r"1.png: would be resized from 10000×1 to 2240000×224"):
        load(Transform(224, 64))


def test_broken_files_can_be_skipped(load, folder):
    whole = load()
    for name in ("train/a/1.jpg", "test/b/0.jpg"):
        (folder / name).write_bytes(b"broken")
    images = load(skip_broken=True)
    assert images.skipped == ("train/a/1.jpg", "test/b/0.jpg")
    assert images.train.files == ("train/a/0.jpg", "train/b/0.jpg", "train/b/1.jpg")
    assert [split.y_N.tolist() for split in (images.train, images.validation, images.test)] == [
        [0, 1, 1], [0, 0, 1, 1], [0, 0, 1],
    ]  # fmt: skip
    np.testing.assert_array_equal(pixels(images), np.delete(pixels(whole), [1, 10], axis=0))
    again = load(skip_broken=True)
    assert (again.skipped, again.fingerprint) == (images.skipped, images.fingerprint)
    with pytest.raises(UserError, match=r"train.a.1.jpg: is not an image"):
        load()  # although it is cached


def test_a_class_that_is_broken_throughout_is_told(load, folder):
    for number in "01":
        (folder / "val" / "b" / f"{number}.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"val.b: every image in it is broken.*0.jpg is not an im"):
        load(skip_broken=True)


GOOD = [encoded(picture(0)), encoded(picture(0), "PNG"), encoded(picture(0).quantize(), "PNG")]


@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), max_size=6),
    st.floats(0, 1),
)
def test_damage_gives_images_or_an_error(tmp_path_factory, content, changes, length):
    """Bytes replaced, inserted or cut off: no other error, and no warning."""
    folder = tmp_path_factory.mktemp("damaged")
    for split, name in itertools.product(SPLITS, "ab"):
        write(f"{split}/{name}/0.png", GOOD[1])(folder)
    data = bytearray(content)
    for place, new in changes:
        start = int(place * len(data))
        data[start : start + 2] = new
    (folder / "train" / "a" / "1.jpg").write_bytes(data[: int(length * len(data)) + 1])
    images = load_images(folder, Transform(8, 8), skip_broken=True, cache=folder / "skipped")
    assert len(images.train.y_N) + len(images.skipped) == 3
    if images.skipped:
        with pytest.raises(UserError, match=r"train.a.1.jpg"):
            load_images(folder, Transform(8, 8), cache=folder / "cache")
    else:
        load_images(folder, Transform(8, 8), cache=folder / "cache")


# The cache


def test_images_are_decoded_once(load):
    first, second = Count(), Count()
    images, again = load(progress=first), load(progress=second)
    assert first.calls == [(i, 12) for i in range(1, 13)]
    assert not second.calls
    assert again.fingerprint == images.fingerprint
    np.testing.assert_array_equal(pixels(images), pixels(again))


def test_a_file_that_changes_is_decoded_again(load, folder):
    path = folder / "test" / "a" / "0.jpg"
    before = load()
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1][: status.st_size][::-1])  # as it was, but later
    assert load().fingerprint == before.fingerprint
    path.write_bytes(encoded(picture(77)))
    after = load()
    assert after.fingerprint != before.fingerprint
    changed_N = (pixels(after) != pixels(before)).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed_N).tolist() == [8]


def test_another_transform_is_another_array(load):
    assert load(Transform((8, 6))).train.x_NxHxWx3.shape == (4, 8, 6, 3)
    assert load(Transform((6, 8))).train.x_NxHxWx3.shape == (4, 6, 8, 3)


def test_the_fingerprint_is_that_of_the_content(load, folder, tmp_path):
    fingerprint = load().fingerprint
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load(folder=copy).fingerprint == fingerprint
    for split in SPLITS:
        (copy / split / "b").rename(copy / split / "c")
    assert load(folder=copy).fingerprint != fingerprint


def test_a_folder_in_another_s_place_is_decoded(load, folder, tmp_path):
    """Two folders may agree in names, sizes and times."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for path in other.rglob("*.jpg"):
        os.utime(path, ns=(0, 0))
    progress = Count()
    load()
    load(folder=other, progress=progress)
    assert len(progress.calls) == 12


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def rewrite(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": {"train/a/0.jpg": "?"}}))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(suffix, d) for suffix in ("npy", "json") for d in (cut, empty, Path.unlink)]
    + [("npy", flip), ("json", rewrite)],
)
def test_a_damaged_cache_is_made_again(load, tmp_path, suffix, damage):
    before = np.array(pixels(load()))
    [path] = (tmp_path / "cache").glob(f"*.{suffix}")
    damage(path)
    progress = Count()
    np.testing.assert_array_equal(pixels(load(progress=progress)), before)
    assert len(progress.calls) == 12


def test_an_interrupted_call_leaves_nothing_half_done(load, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(progress=interrupt)
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"lock"}
    (tmp_path / "cache" / "killed.partial").write_bytes(b"left by a process that was killed")
    assert len(pixels(load())) == 12
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_of_two_at_once_one_decodes(load):
    barrier, progress = threading.Barrier(2), Count()
    found = []

    def run() -> None:
        barrier.wait()
        found.append(load(progress=progress).fingerprint)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert len(progress.calls) == 12


def test_the_least_recently_used_leave_the_cache(load, tmp_path, monkeypatch):
    a, b, c = Transform((8, 6)), Transform((6, 8)), Transform((4, 12))  # of equal size
    size = 12 * 8 * 6 * 3 + 128  # with the header of a .npy file
    monkeypatch.setattr(cache_module, "CACHE_BYTES", 2 * size)
    load(a)
    load(b)
    for age, path in enumerate(sorted((tmp_path / "cache").glob("*.npy"))):
        os.utime(path, (age, age))
    load(a)  # so that b is the oldest
    load(c)
    progress = Count()
    load(a, progress=progress)
    assert not progress.calls
    load(b, progress=progress)
    assert len(progress.calls) == 12
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2


def test_a_full_disk_is_told_before_anything_is_decoded(load, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    progress = Count()
    with pytest.raises(UserError, match=r"cache: the cache for images cannot be written \(0.0 GB"):
        load(progress=progress)
    assert not progress.calls


def test_a_cache_that_is_a_file_is_told(load, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file: the cache for images cannot be written"):
        load(cache=tmp_path / "file")


# The embedded images


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Images:
    return load_images(None, Transform((64, 64)), cache=tmp_path_factory.mktemp("cache"))


def test_embedded_counts(embedded):
    splits = (embedded.train, embedded.validation, embedded.test)
    counts = [np.bincount(split.y_N).tolist() for split in splits]
    assert counts == [[400, 400], [100, 100], [100, 100]]
    assert embedded.classes == ("generated", "real")
    assert len({x_HxWx3.tobytes() for x_HxWx3 in pixels(embedded)}) >= 1190  # draws may coincide


def test_embedded_images_are_the_same_every_time(embedded):
    for number in (0, 401):
        image = photos.draw(embedded.train.files[number])
        np.testing.assert_array_equal(image, embedded.train.x_NxHxWx3[number])


def test_no_split_sees_the_pixels_of_another(embedded, monkeypatch):
    """Every train image stays when the columns that train may not see are blackened."""
    from sklearn import datasets

    photographs = datasets.load_sample_images()
    for photograph in (blackened := [image.copy() for image in photographs.images]):
        photograph[:, 384:] = 0
    monkeypatch.setattr(photos, "_region", photos._region.__wrapped__)
    photographs.images = blackened
    monkeypatch.setattr(datasets, "load_sample_images", lambda: photographs)
    for number in range(0, 800, 50):
        image = photos.draw(embedded.train.files[number])
        np.testing.assert_array_equal(image, embedded.train.x_NxHxWx3[number])
    for split in (embedded.validation, embedded.test):
        assert not np.asarray(photos.draw(split.files[0])).any()


def accuracy(embedded: Images, features) -> float:
    """On the test images, of a linear model of features of an image."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features(embedded.train.x_NxHxWx3 / 255), embedded.train.y_N)
    return model.score(features(embedded.test.x_NxHxWx3 / 255), embedded.test.y_N)


def brightness_and_contrast(x_NxHxWx3: np.ndarray) -> np.ndarray:
    return np.concatenate([x_NxHxWx3.mean((1, 2)), x_NxHxWx3.std((1, 2))], axis=1)


def sharpness(x_NxHxWx3: np.ndarray) -> np.ndarray:
    steps_NxHxW = np.abs(np.diff(x_NxHxWx3, axis=2)).mean(3)
    return np.log(steps_NxHxW.mean((1, 2))).reshape(-1, 1)


def checkerboard(x_NxHxWx3: np.ndarray) -> np.ndarray:
    """The strength of the shortest wave next to that of the waves around it."""
    spectrum_NxF = np.abs(np.fft.rfft(x_NxHxWx3.mean(3), axis=2)).mean(1)
    return np.log(1e-3 + spectrum_NxF[:, -6:])


@pytest.mark.nightly
def test_embedded_classes_differ_in_the_trace_alone(embedded):
    """Chance is 0.5 ± 0.035 on 200 images; hence 0.65 is little and 0.8 is much."""
    assert accuracy(embedded, brightness_and_contrast) < 0.65
    assert accuracy(embedded, sharpness) < 0.65
    assert accuracy(embedded, checkerboard) > 0.8


# Timing


@pytest.mark.nightly
@pytest.mark.integration
def test_decoding_is_timed_beside_the_loader(torchvision, capsys, recwarn):
    bench_images.compare_decoding(6, 1)
    rows = capsys.readouterr().out.splitlines()
    assert "6 photographs, 1024×1024 JPEG" in rows[0]
    assert [row.split("  ")[0].strip() for row in rows[2:]] == [
        "jaxexp", "jaxexp, decoded before", f"DataLoader, {cores()} workers",
    ]  # fmt: skip
    assert not [told for told in recwarn if "fork" in str(told.message)]


def test_too_few_photographs_are_told():
    with pytest.raises(UserError, match="images=5: expected 6 or more"):
        bench_images.compare_decoding(5)
