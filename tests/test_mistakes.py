"""Every mistake ends with status 2 and one line on stderr, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mistakes import COMMANDS, DQN, FILES, OPTIONS, refused


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").write_text("")
    Path("adir").mkdir()


@pytest.mark.parametrize(("option", "expected"), OPTIONS, ids=[option[:60] for option, _ in OPTIONS])
def test_a_wrong_option_is_told(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(expected, line := refused([*DQN, option], capsys)), line


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[content[:60] for content, _ in FILES])
def test_a_wrong_file_is_told(content: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(content)

    assert re.search(expected, line := refused([*DQN, "--config=mine.yaml"], capsys)), line


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS)
def test_a_wrong_command_is_told(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(expected, line := refused(arguments, capsys)), line


def test_a_file_that_is_no_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_bytes(b"a: \xff")

    assert "is not text in UTF-8 (byte 3)" in refused([*DQN, "--config=mine.yaml"], capsys)


def test_there_are_no_fewer_than_sixty() -> None:
    assert len(OPTIONS) + len(FILES) + len(COMMANDS) >= 60
