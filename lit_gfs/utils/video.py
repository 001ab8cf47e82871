"""Write frames to a video file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lit_gfs.errors import UserError


def write_video(path: Path, frames: Tensor, fps: int) -> Path:
    """Write frames as H.264 in ``.mp4``, or as an endless ``.gif``.

    The codec requires even sizes: in ``.mp4`` an odd height or width gets one black row or column more.

    Args:
        path: File to write, replaced if it exists; missing directories are made.
        frames: RGB ``uint8``, ``(T, H, W, 3)`` with at least one frame, on any device.
        fps: Frames shown per second.

    Returns:
        ``path``.

    Raises:
        UserError: If imageio or ffmpeg is missing, or the suffix is neither ``.mp4`` nor ``.gif``.
        ValueError: If ``frames`` has another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or len(frames) == 0:
        raise ValueError(
            f"frames are {tuple(frames.shape)} of {frames.dtype}; expected (T, H, W, 3) of torch.uint8"
        )
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".mp4", ".gif"):
        raise UserError(f"{path.name!r} is no video file; expected a name that ends in '.mp4' or '.gif'")
    try:
        import imageio.v2 as imageio
        from imageio_ffmpeg import get_ffmpeg_exe

        get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there, the binary is not
        raise UserError(
            "writing a video needs imageio and ffmpeg; install them with: pip install 'lit-gfs[video]'"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = frames.cpu()
    if suffix == ".gif":
        imageio.mimwrite(path, list(frames.numpy()), duration=1000 / fps, loop=0)
        return path
    height, width = frames.shape[1:3]
    padded = torch.nn.functional.pad(frames, (0, 0, 0, width % 2, 0, height % 2))
    imageio.mimwrite(path, list(padded.numpy()), fps=fps, codec="libx264", macro_block_size=1)
    return path
