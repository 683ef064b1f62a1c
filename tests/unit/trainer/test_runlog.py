"""Run record and metrics survive crashes and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning.kit.errors import StorageError
from agentlightning.trainer.curve import draw_curve
from agentlightning.trainer.runlog import MetricsLog, RunRecord


def step(n: int, reward: float = 0.5) -> dict[str, object]:
    return {"type": "step", "step": n, "reward": reward}


def evaluation(n: int) -> dict[str, object]:
    return {"type": "eval", "step": n, "name": "val", "accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 96}


def test_record_merges_updates_and_reads_back(tmp_path: Path) -> None:
    RunRecord(tmp_path).update(run_id="a", status="running")
    RunRecord(tmp_path).update(status="succeeded")
    data = RunRecord(tmp_path).data
    assert (data["run_id"], data["status"]) == ("a", "succeeded")
    assert data["updated_at"] > 0


def test_a_corrupt_record_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"run_id": ')
    with pytest.raises(StorageError, match=r"unreadable.*--fresh"):
        RunRecord(tmp_path)


def test_rewind_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    for event in (evaluation(0), step(1), step(2), evaluation(2), step(3), evaluation(3)):
        log.append(event)
    log.append({"type": "rollouts", "done": 3})
    # Checkpoint of step 2: the evaluation at 2 is repeated (from stored rollouts), step 3 is trained again.
    log.rewind(2)
    assert [(e["type"], e["step"]) for e in log.read()] == [("eval", 0), ("step", 1), ("step", 2)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.append(step(1))
    with log.path.open("a") as stream:
        stream.write('{"type": "step", "st')
    assert [e["step"] for e in log.read()] == [1]


def test_tensorboard_events_are_readable_by_tensorboard(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path)
    log.append(step(1, 0.25))
    log.append(step(2, 0.75))
    log.append(evaluation(2))
    log.close()
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/reward", "eval/val/accuracy"} <= set(events.Tags()["scalars"])
    assert [(s.step, s.value) for s in events.Scalars("train/reward")] == [(1, 0.25), (2, 0.75)]


def test_the_curve_is_a_png_with_a_plot_in_it(tmp_path: Path) -> None:
    events = [step(1, 0.2), evaluation(0), step(2, 0.4), evaluation(2), {"type": "step", "step": 3, "reward": None}]
    path = draw_curve(events, tmp_path / "deep" / "curve.png", title="x")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000
