from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from lit_gfs.errors import UserError
from lit_gfs.utils.video import write_video


def moving_square(count: int, height: int, width: int) -> torch.Tensor:
    """Black frames in which a red square of 8 x 8 moves 4 pixels to the right a frame."""
    frames = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    for index in range(count):
        frames[index, 8:16, 4 * index : 4 * index + 8, 0] = 255
    return frames


@pytest.mark.parametrize(("height", "width"), [(64, 80), (63, 81)])
def test_mp4_holds_every_frame_at_an_even_size(tmp_path: Path, height: int, width: int) -> None:
    path = write_video(tmp_path / "new" / "episode.mp4", moving_square(12, height, width), fps=25)

    assert path == tmp_path / "new" / "episode.mp4"
    frames = np.stack(imageio.mimread(path))
    assert next(imageio_ffmpeg.read_frames(str(path)))["fps"] == 25
    assert frames.shape == (12, height + height % 2, width + width % 2, 3)
    # The square is where it was put: red there, black elsewhere. The codec blurs, so only roughly so.
    assert frames[6, 10:14, 26:30, 0].min() > 150
    assert frames[6, 10:14, 50:60].max() < 60


def test_mp4_plays_everywhere(tmp_path: Path) -> None:
    path = write_video(tmp_path / "episode.mp4", moving_square(4, 64, 64), fps=30)
    meta = next(imageio_ffmpeg.read_frames(str(path)))
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")


def test_gif_keeps_its_size(tmp_path: Path) -> None:
    path = write_video(tmp_path / "episode.gif", moving_square(5, 33, 41), fps=10)
    assert np.stack(imageio.mimread(path)).shape[:3] == (5, 33, 41)


def test_missing_imageio_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_imageio(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("imageio"):
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_imageio)
    with pytest.raises(UserError, match=r"pip install 'lit-gfs\[video\]'"):
        write_video(tmp_path / "episode.mp4", moving_square(2, 16, 16), fps=10)


def test_missing_ffmpeg_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_binary() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", no_binary)
    with pytest.raises(UserError, match=r"pip install 'lit-gfs\[video\]'"):
        write_video(tmp_path / "episode.mp4", moving_square(2, 16, 16), fps=10)


def test_other_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'episode.webm'.*'.mp4' or '.gif'"):
        write_video(tmp_path / "episode.webm", moving_square(2, 16, 16), fps=10)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(2, 16, 16, 3),
        torch.zeros(0, 16, 16, 3).byte(),
    ],
)
def test_wrong_frames_are_refused(tmp_path: Path, frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(T, H, W, 3\)"):
        write_video(tmp_path / "episode.mp4", frames, fps=10)
