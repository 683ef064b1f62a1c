"""Training data on disk: nothing is lost, whoever is killed and however many write."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentlightning.integrations.tongyi import records
from agentlightning.integrations.tongyi.records import Interaction, TrainingData

# One process that appends until it is told to end; prints each number only after it is kept.
WRITER = """
import sys
from tests.unit.integrations.tongyi.test_records import interaction
from agentlightning.integrations.tongyi.records import TrainingData
data = TrainingData(sys.argv[1], save_every=3, chunk_size=7)
for number in range(int(sys.argv[3])):
    data.append(interaction(f"{sys.argv[2]}-{number}"))
    print(number, flush=True)
"""


def interaction(query: str = "q", **more: object) -> Interaction:
    values = {
        "timestamp": time.time(),
        "query": query,
        "response": "r",
        "response_time": 1.5,
        "claude_success": True,
        "tools_used": ["Read"],
        "query_length": len(query),
        "response_length": 1,
        **more,
    }
    return Interaction.model_validate(values)


def queries(folder: Path) -> list[str]:
    return [entry.query for entry in TrainingData(folder).read()]


def test_every_interaction_is_on_disk_at_once_and_folded_every_ten(tmp_path: Path) -> None:
    data = TrainingData(tmp_path / "data")
    assert data.read() == []
    for number in range(9):
        data.append(interaction(str(number)))
    assert not list(data.folder.glob("interactions-*"))
    assert queries(data.folder) == [str(number) for number in range(9)]
    data.append(interaction("9"))
    kept = json.loads((data.folder / "interactions-00001.json").read_text())["interactions"]
    assert len(kept) == 10
    assert not (data.folder / "journal.jsonl").exists()
    assert list(kept[0])[:8] == [
        "timestamp",
        "query",
        "response",
        "response_time",
        "claude_success",
        "tools_used",
        "query_length",
        "response_length",
    ]


def test_large_data_are_in_chunks_and_come_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TrainingData(tmp_path, save_every=4, chunk_size=10)
    for number in range(23):
        data.append(interaction(str(number)))
    data.save()
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == [f"interactions-0000{n}.json" for n in (1, 2, 3)]
    assert queries(tmp_path) == [str(number) for number in range(23)]
    monkeypatch.setattr(records, "_MAX_CHUNK_BYTES", 2_000)
    for number in range(23, 30):
        data.append(interaction(str(number), response="x" * 1_500))
    data.save()
    assert queries(tmp_path) == [str(number) for number in range(30)]
    assert len(list(tmp_path.glob("*.json"))) >= 9


def test_a_fold_that_was_interrupted_doubles_nothing(tmp_path: Path) -> None:
    data = TrainingData(tmp_path, save_every=100)
    for number in range(3):
        data.append(interaction(str(number)))
    journal = (tmp_path / "journal.jsonl").read_bytes()
    data.save()
    (tmp_path / "journal.jsonl").write_bytes(journal)  # as if killed before it was removed
    assert queries(tmp_path) == ["0", "1", "2"]
    data.save()
    assert len(json.loads((tmp_path / "interactions-00001.json").read_text())["interactions"]) == 3


def test_damaged_files_are_kept_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = TrainingData(tmp_path, save_every=2)
    for number in range(4):
        data.append(interaction(str(number)))
    (tmp_path / "interactions-00001.json").write_text('{"interactions": [')
    data.append(interaction("after"))
    with (tmp_path / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"timestamp": 1, "que')  # killed in the middle of a line
    data.append(interaction("later"))
    assert queries(tmp_path) == ["after", "later"]
    aside = sorted(path.name for path in tmp_path.glob("*damaged*"))
    assert len(aside) == 2
    assert aside[0].startswith("interactions-00001.damaged-")
    assert (tmp_path / aside[0]).read_text() == '{"interactions": ['
    assert (tmp_path / aside[1]).read_bytes() == b'{"timestamp": 1, "que\n'
    assert any(f"kept as {aside[0]}" in record.getMessage() for record in caplog.records)
    data.append(interaction("last"))
    data.save()
    assert queries(tmp_path) == ["after", "later", "last"]


def test_two_processes_at_once_and_one_of_them_killed_lose_nothing(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[4]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    both = [
        subprocess.Popen([*command, name, count], stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
        for name, count in (("whole", "40"), ("killed", "100000"))
    ]
    whole, killed = both
    assert whole.stdout is not None
    assert killed.stdout is not None
    assert whole.communicate(timeout=90)[0].split()[-1] == "39"
    while int(killed.stdout.readline()) < 20:
        pass
    killed.send_signal(signal.SIGKILL)
    said = 20 + len(killed.communicate(timeout=30)[0].split())
    found = queries(tmp_path)
    assert len(found) == len(set(found))
    assert {f"whole-{n}" for n in range(40)} <= set(found)
    assert {f"killed-{n}" for n in range(said + 1)} <= set(found)


def test_an_export_can_be_read_as_documented(tmp_path: Path) -> None:
    data = TrainingData(tmp_path / "data")
    data.append(interaction("one"))
    assert data.export(tmp_path / "out" / "x.json", {"average_response_time": 1.5}) == 1
    found = json.loads((tmp_path / "out" / "x.json").read_text())
    assert len(found["interactions"]) == 1
    assert f"{found['metrics']['average_response_time']:.2f}s" == "1.50s"
