"""`export3d serve`: the studio's API with renderers on Ray Serve."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from export3d.cli.terminal import tell
from export3d.engines.names import EngineName
from export3d.errors import MissingExtra


def command(
    *,
    replicas: str = "1",
    gpus_per_replica: float | None = None,
    ray: str | None = None,
    port: int = 7860,
    share_on: str | None = None,
    folder: Path | None = None,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
    engine: EngineName = "auto",
) -> int:
    """Serve the studio's page and API to many users, with renderers on Ray. Ctrl-C refuses new work and then ends it.

    Args:
        replicas: how many renderers, or MIN:MAX, such as 1:8: then their number follows the requests that wait.
        gpus_per_replica: share of a GPU that each has; by default 0.25 where there is a GPU, else 0.
        ray: the address of a Ray cluster to which this machine belongs, HOST:PORT or auto; by default a Ray of its own.
        port: where it listens; 0 for any port that is free.
        share_on: serve other machines too, at this address of this machine, such as 0.0.0.0 for all of them. They need
            the token in the URL that is printed. By default only this machine is served.
        folder: where uploads and results are kept until the end; by default the system's temporary folder.
        weights: a name that `export3d weights` lists, or a .safetensors file that every machine can read; by default
            the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch.
    """
    for package in ("fastapi", "uvicorn", "websockets", "python_multipart", "gradio", "mediapipe"):
        if find_spec(package) is None:
            raise MissingExtra("studio", package.replace("_", "-"))
    if find_spec("ray") is None:
        raise MissingExtra("cluster", "Ray")
    import secrets

    from export3d.files import check_folder
    from export3d.serve.running import Replicas, jobs_at_once, serve_app
    from export3d.studio.app import Settings
    from export3d.studio.serving import listen
    from export3d.workers.cluster import LOCAL

    wanted = Replicas.parse(replicas, gpus_per_replica)
    if folder is not None:
        check_folder(folder)
    token = None if share_on is None else secrets.token_urlsafe(24)
    with listen(share_on or "127.0.0.1", port) as sock:
        host = "127.0.0.1" if share_on is None else share_on
        url = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
        url += "" if token is None else f"?token={token}"
        settings = Settings(
            folder=folder,
            shared_on=share_on,
            token=token,
            weights=weights,
            pure=pure,
            device=device,
            engine=engine,
            jobs=jobs_at_once(wanted),
        )
        tell("the renderers are starting")
        serve_app(wanted, settings, sock, lambda: tell(f"ready at {url} (Ctrl-C ends it)"), ray or LOCAL)
    return 0
