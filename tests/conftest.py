"""What the tests share: where the real clips lie, the bundled portrait, seeds and one thread."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "export3d" / "assets"


def _shared_root() -> Path:
    """The folder with real data: EXPORT3D_SHARED, or `shared` beside the checkout."""
    return Path(os.environ.get("EXPORT3D_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session", autouse=True)
def quick_start() -> Iterator[None]:
    """The engine `auto` is `torch` here: OpenVINO takes a second to start, and tests/unit/engines name it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export3d.engines.choice.find_spec", lambda name: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def users_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests have a user's folder of their own: no policy of this machine applies, and no key of it signs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORT3D_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("EXPORT3D_POLICY", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C raises KeyboardInterrupt, as in a terminal: a shell that starts the tests in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout that holds real clips and third-party weights; skips where there is none."""
    root = _shared_root()
    if not root.is_dir():
        pytest.skip(f"no shared data at {root}; set EXPORT3D_SHARED to run what needs it")
    return root


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The real clips and portraits (`clips/`, `portraits/`, `manifest.csv`); skips where there are none."""
    data = shared / "data"
    if not (data / "manifest.csv").is_file():
        pytest.skip(f"no manifest.csv in {data}")
    return data


@pytest.fixture(scope="session")
def shared_models(shared: Path) -> Path:
    """Third-party weights for losses and metrics; skips where there are none."""
    models = shared / "models"
    if not models.is_dir():
        pytest.skip(f"no models in {shared}")
    return models


@pytest.fixture(scope="session")
def assets() -> Path:
    """The package's own data files."""
    return ASSETS


@pytest.fixture(scope="session")
def astronaut_path() -> Path:
    """The bundled public-domain portrait, a 512 x 512 PNG."""
    return ASSETS / "astronaut.png"


@pytest.fixture
def astronaut(astronaut_path: Path) -> np.ndarray:
    """The bundled portrait as uint8 (512, 512, 3) RGB; a fresh copy for each test."""
    from PIL import Image

    with Image.open(astronaut_path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator."""
    return np.random.default_rng(20240411)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same seeds, whatever ran before it."""
    np.random.seed(0)  # noqa: NPY002 - third-party code still draws from the global generator
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Results do not depend on the number of cores of the machine that runs the tests."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of preset `tiny` as a file: every command runs with them, no picture is worth looking at.

    Weights that begin at zero are moved too, so that every input matters.
    """
    import torch

    from export3d.config import preset
    from export3d.model import Export3D
    from export3d.pretrained import save_pretrained

    torch.manual_seed(7)
    model = Export3D(preset("tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return save_pretrained(model, tmp_path_factory.mktemp("weights") / "tiny.safetensors", {"images_seen": 0})


@pytest.fixture(scope="session")
def rigid_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the form of preset `base`, as small as `tiny`, that show the source itself, moved by the camera alone.

    All else in them is random.
    """
    from dataclasses import replace

    import torch

    from export3d.config import preset
    from export3d.model import Export3D
    from export3d.pretrained import save_pretrained

    torch.manual_seed(7)
    model = Export3D(replace(preset("tiny"), warp=preset("base").warp))
    assert model.warp is not None
    motion, dense, detail = model.warp.motion, model.warp.dense, model.warp.detail
    assert motion is not None
    assert dense is not None
    assert detail is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for layer in (motion.out, detail.choice, detail.lean, dense.share, dense.beyond):
            layer.weight.zero_()
        detail.lean.bias.zero_()
        dense.beyond.bias.zero_()
        dense.share.bias.copy_(torch.tensor([60.0, 0.0, 0.0, 0.0]))
        detail.choice.bias.copy_(torch.tensor([0.0, 60.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    return save_pretrained(model, tmp_path_factory.mktemp("weights") / "rigid.safetensors", {"images_seen": 0})


@pytest.fixture(scope="session")
def astronaut_turns(astronaut_path: Path) -> list[np.ndarray]:
    """Two dozen frames, uint8 (256, 256, 3): the bundled portrait tilts its head to and fro in the image plane."""
    from PIL import Image

    with Image.open(astronaut_path) as image:
        upper = image.convert("RGB").crop((90, 0, 346, 256))
    angles = 12.0 * np.sin(np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False))
    return [np.array(upper.rotate(float(a), Image.Resampling.BICUBIC, center=(128, 150))) for a in angles]


@pytest.fixture(scope="session")
def face_video(astronaut_turns: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`astronaut_turns` as an MP4 of 25 fps, with a second of sound."""
    from export3d.video import VideoWriter

    folder = tmp_path_factory.mktemp("clips")
    with VideoWriter(folder / "face.mp4", 25.0, 256, audio_from=_tone(folder / "tone.mp4")) as writer:
        for frame in astronaut_turns:
            writer.write(frame)
    return folder / "face.mp4"


@pytest.fixture(scope="session")
def motion_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of made-up motion: the head turns, the jaw opens, the eyes close."""
    from export3d.camera import Camera
    from export3d.motion.arkit import ARKIT52
    from export3d.motion.motion import Motion

    phase = np.linspace(0.0, 2.0 * np.pi, 12)
    expression = np.zeros((12, len(ARKIT52)))
    expression[:, ARKIT52.index("jawOpen")] = 0.3 - 0.3 * np.cos(phase)
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        expression[:, ARKIT52.index(name)] = 0.5 - 0.5 * np.cos(2 * phase)
    cameras = np.stack([Camera.orbit(yaw_deg=15 * np.sin(p), pitch_deg=5 * np.cos(p)).label for p in phase])
    path = tmp_path_factory.mktemp("motions") / "made.motion"
    Motion(expression, cameras, 25.0, "arkit52").save(path)
    return path


def _tone(path: Path) -> Path:
    """A small video with one second of sound."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 16
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)[None]
        samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(sound.encode(samples))
        container.mux([*video.encode(None), *sound.encode(None)])
    return path
