"""What it costs that another process renders: heads asked for directly, and through a studio with --backend.

    python benchmarks/studio_backend.py

Both studios run on this machine, with the packaged weights. The same questions go to both in turn, over one WebSocket
each. "not rendering" is the time that the engine does not report as its own: the way there and back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from studio_process import Studio
from websockets.sync.client import ClientConnection, connect


def ask(socket: ClientConnection, yaw: float, quality: str) -> tuple[float, float]:
    """Milliseconds until a picture is here, and those of them that the engine did not render."""
    begun = time.perf_counter()
    socket.send(json.dumps({"n": 1, "portrait": "bundled", "yaw": yaw, "quality": quality}))
    header = json.loads(socket.recv(60))
    if "error" in header:
        raise SystemExit(header["error"])
    socket.recv(60)
    took = 1000.0 * (time.perf_counter() - begun)
    return took, took - header["ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100, help="of each quality, from each studio")
    pictures = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as folder:
        studios = [Studio(Path(folder, "backend"))]
        try:
            studios.append(Studio(Path(folder, "front"), ["--backend", studios[0].wait()]))
            addresses = [f"{studio.wait().replace('http', 'ws', 1)}/api/head" for studio in studios]
            with connect(addresses[0]) as direct, connect(addresses[1]) as through:
                print("| quality | asked | p50 | p95 | not rendering, p50 | p95 |\n|---|---|---|---|---|---|")
                for quality in ("fast", "full"):
                    found: dict[str, list[tuple[float, float]]] = {"directly": [], "through --backend": []}
                    for number in range(-3, pictures):  # the first ones prepare the portrait
                        order = list(zip(found, (direct, through)))
                        for name, socket in order[:: 1 if number % 2 else -1]:  # neither is always first
                            found[name] += [ask(socket, 40.0 * number / pictures, quality)] * (number >= 0)
                    for name, times in found.items():
                        cells = " | ".join(cell for column in zip(*times) for cell in figures(column))
                        print(f"| {quality} | {name} | {cells} |", flush=True)
        finally:
            for studio in reversed(studios):
                studio.end()


def figures(times: tuple[float, ...]) -> tuple[str, str]:
    """The median, and what 95 of 100 stay below."""
    return f"{statistics.median(times):.1f} ms", f"{statistics.quantiles(times, n=20)[-1]:.1f} ms"


if __name__ == "__main__":
    main()
