"""`export3d studio`: a local web application."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from export3d.cli.terminal import tell
from export3d.engines.names import EngineName
from export3d.errors import ConfigError, MissingExtra

_JOBS_ELSEWHERE = 4
"""Jobs that another machine is given at a time."""


def command(
    *,
    port: int = 7860,
    share_on: str | None = None,
    no_browser: bool = False,
    folder: Path | None = None,
    backend: str | None = None,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
    engine: EngineName = "auto",
) -> int:
    """Open the studio: a web page that turns, edits and animates a portrait. Ctrl-C ends it.

    Args:
        port: where it listens; 0 for any port that is free.
        share_on: serve other machines too, at this address of this machine, such as 0.0.0.0 for all of them. They need
            the token in the URL that is printed. By default only this machine is served.
        no_browser: do not open a browser.
        folder: where uploads and results are kept until the end; by default the system's temporary folder.
        backend: the URL that another machine's `export3d serve` or `studio --share-on` printed, with its token: that
            machine renders, and this one only serves the page. Photos and videos are sent there.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch.
    """
    if backend is not None and (weights, pure, device, engine) != (None, False, "auto", "auto"):
        raise ConfigError(
            "--backend renders elsewhere, with the weights of that machine; leave out --weights, --pure, --device and "
            "--engine"
        )
    renders = "mediapipe" if backend is None else "httpx"
    for package in ("fastapi", "uvicorn", "websockets", "python_multipart", "gradio", renders):
        if find_spec(package) is None:
            raise MissingExtra("studio", package.replace("_", "-"))
    import secrets

    from export3d.files import check_folder
    from export3d.studio.app import Settings
    from export3d.studio.serving import listen, serve

    if folder is not None:
        check_folder(folder)
    token = None if share_on is None else secrets.token_urlsafe(24)
    with listen(share_on or "127.0.0.1", port) as sock:
        host = "127.0.0.1" if share_on is None else share_on
        url = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
        url += "" if token is None else f"?token={token}"

        def ready() -> None:
            tell(f"the studio is ready at {url} (Ctrl-C ends it)")
            if not no_browser:
                _open_browser(url)

        tell("the studio is starting")
        settings = Settings(
            folder=folder,
            shared_on=share_on,
            token=token,
            weights=weights,
            pure=pure,
            device=device,
            engine=engine,
            backend=backend,
            jobs=1 if backend is None else _JOBS_ELSEWHERE,
        )
        serve(settings, sock, ready)
    return 0


def _open_browser(url: str) -> None:
    """Open a page in the user's browser, where there is a screen to show it on."""
    import threading
    import webbrowser

    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
