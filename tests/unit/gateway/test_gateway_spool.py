"""The spool: order, bounds, torn and damaged files, slots of several processes, disks that refuse."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentlightning.gateway.spool import Entry, Spool, SpoolFullError, spool_folder
from agentlightning.kit.errors import StorageError
from agentlightning.schemas import Span
from agentlightning.store.records import record_from_span, span_from_record


def entry(number: int, size: int = 10, spans: int = 1) -> Entry:
    return [
        record_from_span(
            Span.from_attributes(
                attributes={"number": number, "text": "x" * size},
                rollout_id="ro",
                attempt_id="at",
                span_id=f"{number}.{position}",
            )
        )
        for position in range(spans)
    ]


def numbers(entries: list[Entry]) -> list[int]:
    return [span_from_record(found[0]).attributes["number"] for found in entries]


@pytest.fixture
def spool(tmp_path: Path):
    opened = Spool(tmp_path / "spool", segment_bytes=2000)
    opened.open()
    yield opened
    opened.close()


def read_all(spool: Spool, at_once: int = 3) -> list[int]:
    found: list[int] = []
    while entries := spool.head(at_once):
        found += numbers(entries)
        spool.drop(len(entries))
    return found


def test_entries_come_back_in_order_over_many_segments(spool: Spool) -> None:
    for start in range(0, 60, 3):
        spool.append([entry(number, size=100) for number in range(start, start + 3)])
    assert len(list(spool.root.glob("slot-000/*.spool"))) > 3
    assert spool.spans == 60
    assert read_all(spool) == list(range(60))
    assert (spool.spans, spool.bytes) == (0, 0)
    assert not list(spool.root.glob("slot-000/*.spool"))


def test_appending_and_delivering_may_alternate(spool: Spool) -> None:
    found: list[int] = []
    for number in range(50):
        spool.append([entry(number, size=150)])
        if number % 3 == 2:
            head = spool.head(2)
            found += numbers(head)
            spool.drop(len(head))
    assert found + read_all(spool) == list(range(50))


def test_an_entry_is_never_split(spool: Spool) -> None:
    spool.append([entry(0, spans=5), entry(1, spans=1)])
    spool.drop(0)
    assert [len(found) for found in spool.head(1)] == [5]
    spool.drop(1)
    assert spool.spans == 1


def test_what_waits_is_there_after_a_restart(spool: Spool) -> None:
    spool.append([entry(number, size=100) for number in range(30)])
    spool.drop(4)
    spool.close()
    again = Spool(spool.root)
    again.open()
    assert read_all(again) == list(range(30))  # the segment was not finished: delivered again
    again.append([entry(99)])
    assert read_all(again) == [99]
    again.close()


@pytest.mark.parametrize("cut", [1, 7, 9, 60])
def test_a_torn_end_is_cut_off_and_kept_aside(spool: Spool, cut: int) -> None:
    spool.append([entry(0), entry(1), entry(2)])
    [path] = spool.root.glob("slot-000/*.spool")
    spool.close()
    with path.open("rb+") as stream:
        stream.truncate(path.stat().st_size - cut)
    spool.open()
    assert spool.spans == 2
    spool.append([entry(3)])
    assert read_all(spool) == [0, 1, 3]
    assert list(spool.root.glob("slot-000/*.damaged"))


def test_a_file_with_nothing_whole_is_gone_after_the_start(spool: Spool) -> None:
    (spool.root / "slot-000" / "00000007.spool").write_bytes(b"\x05\x00")
    spool.close()
    spool.open()
    assert (spool.spans, spool.bytes) == (0, 0)
    assert spool.head() == []


def test_damage_while_running_costs_one_segment_and_is_said(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(40):
        spool.append([entry(number, size=100)])
    first, *_ = sorted(spool.root.glob("slot-000/*.spool"))
    data = bytearray(first.read_bytes())
    data[20] ^= 0xFF
    first.write_bytes(data)
    found = read_all(spool)
    assert found == list(range(found[0], 40))
    assert 0 < found[0] < 40
    assert "damaged" in caplog.text
    assert (spool.spans, spool.bytes) == (0, 0)


def test_its_size_is_bounded_and_an_append_is_all_or_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1000)
    spool.open()
    spool.append([entry(0, size=500)])
    with pytest.raises(SpoolFullError, match="at most 1000"):
        spool.append([entry(1), entry(2, size=900)])
    assert read_all(spool) == [0]
    spool.append([entry(3, size=500)])
    assert read_all(spool) == [3]
    spool.close()


def test_live_processes_have_slots_of_their_own_and_the_dead_are_adopted(spool: Spool) -> None:
    spool.append([entry(1)])
    second = Spool(spool.root)
    second.open()
    assert second.head() == []
    second.append([entry(2)])
    second.close()
    spool.close()  # both "processes" are dead
    third = Spool(spool.root)
    third.open()
    assert read_all(third) == [1, 2]
    third.close()


def test_what_the_store_refused_can_be_read_by_people(spool: Spool) -> None:
    path = spool.refuse(entry(5), "no such rollout")
    [line] = path.read_text().splitlines()
    refused = json.loads(line)
    assert refused["reason"] == "no such rollout"
    assert refused["spans"][0]["body"]["attributes"]["number"] == 5


def test_a_closed_spool_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not open"):
        Spool(tmp_path).append([entry(1)])


def test_a_folder_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Spool(tmp_path / "file").open()


def _fill_limited_disk(folder: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    spool = Spool(folder)
    spool.open()
    kept: list[int] = []
    refused = 0
    for number in range(40):
        try:
            spool.append([entry(number, size=400)])
            kept.append(number)
        except StorageError:
            refused += 1
    found = read_all(spool)
    spool.append([entry(100)])  # room again
    assert read_all(spool) == [100]
    assert found == kept, (found, kept)
    assert refused > 0
    os._exit(0)


def test_a_disk_that_takes_half_a_record_leaves_the_rest_readable(tmp_path: Path) -> None:
    # The kernel's limit on file sizes fails a write half-way, as a full disk does.
    process = multiprocessing.get_context("spawn").Process(target=_fill_limited_disk, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 0


_KILLED = """
import os, signal, sys
from tests.unit.gateway.test_gateway_spool import Spool, entry
spool = Spool(sys.argv[1], segment_bytes=5000)
spool.open()
for number in range(10**6):
    spool.append([entry(number, size=200)])
    print(number, flush=True)
    if number == 200:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_everything_kept_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = [int(line) for line in done.stdout.split()]
    spool = Spool(tmp_path)
    spool.open()
    assert read_all(spool) == kept == list(range(201))
    spool.close()


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("postgresql://u:secret@h:5432/db", "postgresql://u:other@h:5432/db"),
        ("postgresql://h/db", "postgresql://h/db"),
    ],
)
def test_a_store_has_a_folder_of_its_own(tmp_path: Path, url: str, other: str) -> None:
    def at(location: object) -> Path | None:
        return spool_folder(SimpleNamespace(location=location), tmp_path)

    assert at(url) == at(other)
    assert at(url) != at(url + "2")
    assert at(tmp_path / "store.db") == tmp_path / "store.db.spool"
    assert at(None) is None
    assert spool_folder(SimpleNamespace(server_address_root="http://h:1"), tmp_path) is not None
