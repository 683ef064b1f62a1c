"""Log output of the package, and of nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlightning.kit.logs import setup_logging, setup_module_logging

NAMES = ("agentlightning", "agentlightning.part", "somebody.else", "silenced")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(x.level, x.propagate, x.disabled, list(x.handlers)) for x in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, disabled, handlers) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.setLevel(level)
        logger.propagate, logger.disabled, logger.handlers = propagate, disabled, handlers


def test_console_gets_what_is_important_enough(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("WARNING", color=False, submodule_levels={"agentlightning.part": "DEBUG"})
    logging.getLogger("agentlightning").info("too quiet")
    logging.getLogger("agentlightning").warning("loud")
    logging.getLogger("agentlightning.part").debug("quiet, but wanted")
    said = capsys.readouterr().err
    assert "loud" in said
    assert "quiet, but wanted" in said
    assert "too quiet" not in said


def test_calling_it_again_replaces_and_does_not_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("DEBUG", color=False)
    setup_logging(logging.INFO, color={"show_time": False})
    logging.getLogger("agentlightning").info("once")
    assert capsys.readouterr().err.count("once") == 1
    logger = setup_module_logging(console=False)
    logger.info("nowhere")
    assert capsys.readouterr().err == ""


def test_files_formatter_and_handlers(tmp_path: Path) -> None:
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(self.format(record))

    setup_logging(
        console=False,
        files=str(tmp_path / "all.log"),
        extra_handlers=[Keep()],
        formatter=logging.Formatter("<%(message)s>"),
        apply_to=["somebody.else"],
        disable_existing_loggers=False,
    )
    logging.getLogger("agentlightning.part").info("ours")
    logging.getLogger("somebody.else").info("theirs")
    assert seen == ["<ours>", "<theirs>"]
    assert (tmp_path / "all.log").read_text() == "<ours>\n<theirs>\n"
    setup_logging(console=False, files={"agentlightning.part": str(tmp_path / "part.log")})
    logging.getLogger("agentlightning.part").info("part")
    assert "part" in (tmp_path / "part.log").read_text()


def test_others_can_be_silenced_and_bad_levels_are_said() -> None:
    setup_logging(console=False, disable_existing_loggers=False)
    with pytest.raises(ValueError, match="no level"):
        setup_logging("LOUD")
