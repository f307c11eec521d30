"""Many clients of the studio at once, on the loopback: answers, refusals, lost jobs, latency, and memory over time.

    python benchmarks/studio_load.py -o docs/images/studio-load.png [--clients 20] [--minutes 5]

Starts `export3d studio` and lets every client do one thing after the other, each chosen at random: turn the head for a
few seconds over the WebSocket, edit, animate with a bundled motion, upload a video and animate with it, cancel a job,
upload garbage, and leave in the middle of an upload, a job or a connection. When the time is over, nothing new begins;
what was queued is followed to its end.

Prints the tables of docs/studio.md and plots the resident memory of all processes. Ends with code 1 if a process of the
studio died, a job was lost or failed, a request got no answer or one that is not a sentence, or memory reached 2 GB.
Other options go to `export3d studio`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import websockets
from studio_process import PREFIX, Studio

from export3d.animate.drive import bundled_portrait
from export3d.bench.clip import write_clip

CLIP_S = 3.0
RESULT_S = 1.0
MOST_MB = 2000.0
EVERY_S = 0.5
DRAG_HZ = 25.0
DRAIN_S = 600.0
"""How long the end of what is queued is waited for."""
ENDED = ("done", "failed", "cancelled")
WEIGHTS = {"drag": 8, "edit": 4, "animate": 2, "drive": 1, "cancel": 2, "garbage": 3, "leave": 2}
"""How often clients do each thing, in proportion."""


class Record:
    """What all clients saw.

    Attributes:
        answers: by action and status of HTTP, or "ok" of messages.
        sentences: what was refused, by status: the words.
        seconds: how long answers took, by kind.
        jobs: how jobs ended.
        lost: jobs that were accepted and did not come to a good end, and why.
        faults: answers that should not be.
    """

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.sentences: dict[int, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.jobs: Counter[str] = Counter()
        self.lost: list[str] = []
        self.faults: list[str] = []

    def refused(self, action: str, status: int, text: str) -> None:
        """Note a refusal; one that is no sentence, that names a path, or that is a bug of the server, is a fault."""
        try:
            sentence = str(json.loads(text)["error"])
        except (ValueError, KeyError, TypeError):
            self.faults.append(f"{action}: {status} without a sentence: {text[:80]!r}")
            return
        self.sentences[status][sentence] += 1
        if len(sentence) < 15 or PREFIX in sentence or status == 500:
            self.faults.append(f"{action}: {status}: {sentence}")


class Client:
    """One client, with random numbers of its own."""

    def __init__(self, number: int, url: str, files: dict[str, bytes], record: Record, end: float) -> None:
        self.name, self.files, self.record, self.end = f"load-{number}", files, record, end
        self.random = random.Random(number)
        self.url = url
        self.http = httpx.AsyncClient(
            base_url=url, timeout=120.0, headers={"X-Export3D-Client": self.name}, trust_env=False
        )
        self.left: list[str] = []
        """Jobs that it did not wait for."""

    async def run(self) -> None:
        """Do one thing after the other until the time is over, then wait for what was left."""
        actions = list(WEIGHTS)
        await asyncio.sleep(self.random.uniform(0.0, 2.0))
        while time.monotonic() < self.end:
            action = self.random.choices(actions, list(WEIGHTS.values()))[0]
            try:
                await getattr(self, action)()
            except (httpx.HTTPError, OSError, websockets.WebSocketException, TimeoutError) as problem:
                self.record.faults.append(f"{action}: no answer: {problem!r}")
            await asyncio.sleep(self.random.uniform(0.2, 1.5))
        for job in self.left:
            await self.follow(job, "left")
        await self.http.aclose()

    async def send(self, action: str, method: str, path: str, expected: int, **more: Any) -> httpx.Response | None:
        """A request; its answer, or None where it was refused."""
        begun = time.monotonic()
        answer = await self.http.request(method, path, **more)
        self.record.seconds[f"{method} {path.split('?')[0] if path.count('/') < 3 else 'a job'}"].append(
            time.monotonic() - begun
        )
        self.record.answers[action, str(answer.status_code)] += 1
        if answer.status_code == expected:
            return answer
        self.record.refused(action, answer.status_code, answer.text)
        if answer.status_code in (429, 503):
            await asyncio.sleep(min(float(answer.headers.get("retry-after", 2)), 5.0))
        return None

    async def upload(self, action: str, kind: str, name: str) -> str | None:
        """The id of an upload; None where it was refused."""
        path = f"/api/uploads?kind={kind}&name={name}"
        answer = await self.send(action, "POST", path, 201, content=self.files[name])
        return None if answer is None else str(answer.json()["id"])

    async def portrait(self, action: str) -> str:
        """The bundled portrait, or one time of four an upload of it."""
        return (self.random.random() < 0.25 and await self.upload(action, "photo", "me.png")) or "bundled"

    async def submit(self, action: str, **verb: Any) -> str | None:
        """The id of a job; None where it was refused."""
        answer = await self.send(action, "POST", "/api/jobs", 202, json=verb)
        return None if answer is None else str(answer.json()["id"])

    async def follow(self, job: str, action: str, cancelled: bool = False) -> None:
        """Ask for a job until it has ended, and take its files."""
        record, begun = self.record, time.monotonic()
        while True:
            answer = await self.http.get(f"/api/jobs/{job}")
            if answer.status_code == 429:
                await asyncio.sleep(2.0)
                continue
            if answer.status_code != 200:
                record.lost.append(f"{action}: {answer.status_code} {answer.text[:100]}")
                return
            shown = answer.json()
            if shown["state"] in ENDED:
                break
            if time.monotonic() > max(self.end, begun) + DRAIN_S:
                record.lost.append(f"{action}: still {shown['state']} after {DRAIN_S:.0f} s")
                return
            await asyncio.sleep(0.5)
        record.jobs[shown["state"]] += 1
        record.seconds[f"job: {shown['verb']}"].append(time.monotonic() - begun)
        if shown["state"] == "failed" or (shown["state"] == "cancelled" and not cancelled):
            record.lost.append(f"{action}: {shown['state']}: {shown['error']}")
        for file in shown["files"]:
            got = await self.http.get(file["url"])
            if got.status_code != 200 or len(got.content) != file["bytes"] or not got.content:
                record.lost.append(f"{action}: {file['name']}: {got.status_code}, {len(got.content)} bytes")

    async def drag(self) -> None:
        """Turn the head for some seconds."""
        address = self.url.replace("http", "ws", 1) + f"/api/head?client={self.name}"
        portrait, sent = await self.portrait("drag"), {}
        try:
            socket = await websockets.connect(address, proxy=None, max_size=2**22)
        except websockets.InvalidStatus as refused:
            self.record.answers["drag", str(refused.response.status_code)] += 1
            self.record.refused("drag", refused.response.status_code, refused.response.body.decode())
            return

        async def ask() -> None:
            for n in range(int(self.random.uniform(3.0, 6.0) * DRAG_HZ)):
                angle = 20.0 * np.sin(n / 12.0)
                sent[n] = time.monotonic()
                await socket.send(json.dumps({"n": n, "portrait": portrait, "yaw": float(angle), "quality": "fast"}))
                await asyncio.sleep(1.0 / DRAG_HZ)

        async with socket:
            asking = asyncio.create_task(ask())
            while not asking.done() or sent:
                header = json.loads(await asyncio.wait_for(socket.recv(), 60.0))
                n = header["n"]
                if "error" in header:
                    self.record.answers["drag", str(header["status"])] += 1
                    self.record.refused("drag", header["status"], json.dumps({"error": header["error"]}))
                else:
                    image = await asyncio.wait_for(socket.recv(), 60.0)
                    self.record.answers["drag", "ok"] += 1
                    self.record.seconds["head"].append(time.monotonic() - sent[n])
                    if not isinstance(image, bytes) or image[:3] != b"\xff\xd8\xff":
                        self.record.faults.append("drag: an answer that is no JPEG")
                for old in [key for key in sent if key <= n]:
                    del sent[old]
            await asking

    async def edit(self) -> None:
        """An edited still."""
        yaw = self.random.uniform(-30.0, 30.0)
        portrait = await self.portrait("edit")
        job = await self.submit("edit", verb="edit", portrait=portrait, yaw=yaw, scores={"jawOpen": 0.5})
        if job is not None:
            await self.follow(job, "edit")

    async def animate(self) -> None:
        """A video by a bundled motion."""
        motion = self.random.choice(("speech", "expressions", "turns"))
        portrait = await self.portrait("animate")
        job = await self.submit("animate", verb="animate", portrait=portrait, motion=motion, seconds=RESULT_S)
        if job is not None:
            await self.follow(job, "animate")

    async def drive(self) -> None:
        """A video by an uploaded video."""
        video = await self.upload("drive", "video", "clip.mp4")
        if video is None:
            return
        verb = {"verb": "animate", "portrait": "bundled", "driving": video, "seconds": RESULT_S}
        job = await self.submit("drive", **verb)
        if job is not None:
            await self.follow(job, "drive")

    async def cancel(self) -> None:
        """A job that is cancelled while it waits or runs."""
        job = await self.submit("cancel", verb="animate", portrait="bundled", motion="speech", seconds=10.0)
        if job is None:
            return
        await asyncio.sleep(self.random.uniform(0.0, 4.0))
        await self.send("cancel", "DELETE", f"/api/jobs/{job}", 200)
        await self.follow(job, "cancel", cancelled=True)

    async def garbage(self) -> None:
        """Something that is no upload, in one of many ways."""
        noise = self.random.randbytes(self.random.randrange(0, 200_000))
        good = self.files[self.random.choice(("me.png", "clip.mp4"))]
        body = self.random.choice(
            (noise, good[: len(good) // 3], b"#EXTM3U\nfile:///etc/passwd\n", b"", b"GIF89a" + noise)
        )
        kind = self.random.choice(("photo", "video", "motion", "background", "thing"))
        begun = time.monotonic()
        answer = await self.http.post(f"/api/uploads?kind={kind}&name=..%2F..%2Fx.png", content=body)
        self.record.seconds["refusal of garbage"].append(time.monotonic() - begun)
        self.record.answers["garbage", str(answer.status_code)] += 1
        if answer.status_code >= 400:
            self.record.refused("garbage", answer.status_code, answer.text)

    async def leave(self) -> None:
        """Go away in the middle of an upload, a job or a connection."""
        way = self.random.choice(("upload", "job", "socket"))
        self.record.answers[f"leave: {way}", "–"] += 1
        if way == "upload":

            async def slowly() -> AsyncIterator[bytes]:
                yield self.files["me.png"][:10_000]
                await asyncio.sleep(30.0)

            sending = asyncio.create_task(self.http.post("/api/uploads?kind=photo&name=me.png", content=slowly()))
            await asyncio.sleep(0.5)
            sending.cancel()
            with suppress(asyncio.CancelledError, httpx.HTTPError):
                await sending
        elif way == "job":
            job = await self.submit("leave a job", verb="orbit", portrait="bundled", seconds=RESULT_S)
            self.left += [] if job is None else [job]
        else:
            address = self.url.replace("http", "ws", 1) + f"/api/head?client={self.name}"
            with suppress(websockets.InvalidStatus):
                socket = await websockets.connect(address, proxy=None)
                await socket.send(json.dumps({"n": 1, "portrait": "bundled"}))
                socket.transport.abort()


class Watch:
    """Looks at the studio from outside while it is used: memory by kind of process, deaths, and /health."""

    def __init__(self, studio: Studio, record: Record) -> None:
        self.studio, self.record = studio, record
        self.times: list[float] = []
        self.mb: dict[str, list[float]] = defaultdict(list)
        self.engines: set[int] = set()

    async def run(self) -> None:
        """Sample until cancelled."""
        begun = asked = time.monotonic()
        async with httpx.AsyncClient(base_url=self.studio.url, timeout=30.0, trust_env=False) as http:
            while self.studio.alive:
                children = await asyncio.to_thread(self.studio.processes)
                self.times.append(time.monotonic() - begun)
                for kind in ("server", "engine", "intake"):
                    self.mb[kind].append(sum(child.mb for child in children if child.kind == kind))
                self.engines |= {child.pid for child in children if child.kind == "engine"}
                if time.monotonic() - asked > 1.0:
                    asked = time.monotonic()
                    try:
                        await http.get("/health")
                        self.record.seconds["GET /health"].append(time.monotonic() - asked)
                    except httpx.HTTPError as problem:
                        self.record.faults.append(f"/health: no answer: {problem!r}")
                await asyncio.sleep(EVERY_S)
        self.record.faults.append("the server died")

    @property
    def total(self) -> list[float]:
        """MB of all processes at each time."""
        return [sum(values) for values in zip(*self.mb.values())]


async def load(studio: Studio, clients: int, minutes: float, files: dict[str, bytes]) -> tuple[Record, Watch]:
    """Let the clients loose."""
    record = Record()
    watch = Watch(studio, record)
    watching = asyncio.create_task(watch.run())
    end = time.monotonic() + 60.0 * minutes
    runs: list[Callable[[], Awaitable[None]]] = [
        Client(number, studio.url, files, record, end).run for number in range(clients)
    ]
    for outcome in await asyncio.gather(*(run() for run in runs), return_exceptions=True):
        if isinstance(outcome, BaseException):
            record.faults.append(f"a client ended: {outcome!r}")
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return record, watch


def report(record: Record, watch: Watch) -> None:
    """Print what happened as Markdown."""
    print("\n| action | answers |\n| --- | --- |")
    for action in sorted({action for action, _ in record.answers}):
        counted = sorted((status, number) for (one, status), number in record.answers.items() if one == action)
        print(f"| {action} | {', '.join(f'{number} × {status}' for status, number in counted)} |")
    print("\n| what | number | p50 s | p95 s | longest s |\n| --- | --- | --- | --- | --- |")
    for what, seconds in sorted(record.seconds.items()):
        p50, p95 = np.percentile(seconds, (50, 95))
        print(f"| {what} | {len(seconds)} | {p50:.3f} | {p95:.3f} | {max(seconds):.3f} |")
    print("\n| status | refusals | sentences, most frequent first |\n| --- | --- | --- |")
    for status, sentences in sorted(record.sentences.items()):
        shown = "; ".join(f"{text} ({number})" for text, number in sentences.most_common(3))
        print(f"| {status} | {sum(sentences.values())} | {shown} |")
    print(f"\njobs: {dict(record.jobs)}; lost: {len(record.lost)}; engines started: {len(watch.engines)}")
    total = watch.total
    peaks = ", ".join(f"{kind} {max(values):.0f}" for kind, values in watch.mb.items())
    print(f"memory, MB: {max(total):.0f} at most ({peaks}); at the end {total[-1]:.0f}")
    for kind, lines in (("lost", record.lost), ("fault", record.faults)):
        for line in lines[:20]:
            print(f"{kind}: {line}")


def plot(path: Path, watch: Watch, title: str) -> None:
    """Memory over time, by kind of process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    minutes = np.array(watch.times) / 60.0
    axes.stackplot(minutes, *watch.mb.values(), labels=list(watch.mb), alpha=0.8)
    axes.axhline(MOST_MB, color="firebrick", linestyle="--", linewidth=1)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, 1.1 * MOST_MB), title=title)
    axes.legend(loc="upper left", ncols=3)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Start the studio, use it, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the plot (.png or .webp)")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        clip = write_clip(Path(name) / "clip.mp4", CLIP_S, 640, 360)
        files = {"clip.mp4": clip.read_bytes(), "me.png": bundled_portrait().read_bytes()}
        folder = Path(name) / "studio"
        folder.mkdir()
        studio = Studio(folder, options)
        try:
            studio.wait()
            record, watch = asyncio.run(load(studio, given.clients, given.minutes, files))
        finally:
            code = studio.end()
        if code != 0:
            record.faults.append(f"the studio ended with {code}")
        if any(folder.iterdir()):
            record.faults.append(f"the studio left {[path.name for path in folder.iterdir()]}")
    record.faults += [f"the studio said: {line}" for line in studio.said if "Traceback" in line or "bug" in line]
    if len(watch.engines) != 1:
        record.faults.append(f"the engine was started {len(watch.engines)} times")
    print(f"{given.clients} clients, {given.minutes:g} minutes")
    report(record, watch)
    plot(given.output, watch, f"studio, {given.clients} clients for {given.minutes:g} minutes")
    return int(bool(record.lost or record.faults) or max(watch.total) >= MOST_MB)


if __name__ == "__main__":
    raise SystemExit(main())
