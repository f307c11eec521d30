"""The invisible mark: what it costs, what it survives, what breaks it, and how often it is seen where none is.

    python benchmarks/marks.py --cache CACHE [--portraits PHOTOS] [--sizes 256 512 photo] [--bars]
    python benchmarks/marks.py --cache CACHE --unmarked FOLDERS [--frames 20000] [--figure FILE.webp]
    python benchmarks/marks.py --cache CACHE --sheet FILE.webp [--portraits PHOTOS]
    python benchmarks/marks.py --quick

First form: each portrait is animated for 2 s by the bundled motion `speech`, at 256 and 512 pixels and as a photo with
a shorter side of 1,080, marked, and written by the package. Every attack of `marks_attacks.py` follows. The tables:
PSNR and time per frame, the attacks, and their limits. Without `--portraits` only the bundled portrait is used.
Second form: the detector's score where there is no mark. Images and evenly spaced frames of videos, at four sizes; some
whole videos; the frames of CACHE before marking; and, if `imwatermark` (invisible-watermark) is installed, images that
it marked. Third form: image, marked image, and their difference times ten.

CACHE keeps rendered frames and results. A run that was interrupted goes on; results of another detector are left out.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import io
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from multiprocessing import Pool
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from marks_attacks import BARS, COPIES, QUICK, Attack, Clip, Frames, Picture, attacks
from PIL import Image

from export3d.animate.animator import Animator
from export3d.animate.drive import bundled_motion, bundled_portrait, read_motion
from export3d.files import write_bytes
from export3d.image import contact_sheet, fitted, read_image
from export3d.provenance import watermark
from export3d.provenance.watermark.detect import find_watermark
from export3d.provenance.watermark.embed import Watermark
from export3d.video import VideoWriter, read_frames

SIZES = ("256", "512", "photo")
PHOTO_SIDE = 1080
SECONDS, FPS = 2, 25
UNMARKED_SIDES = (None, 256, 512, 720)
"""Shorter sides of the frames without a mark; None: as the file has it."""
WHOLE = "video of 50 frames"
IMAGES, VIDEOS = (".jpg", ".jpeg", ".png", ".webp"), (".mp4", ".mov", ".webm")


def statements(path: Path) -> str:
    """A Python file without comments and docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.unparse(tree)


class Cache:
    """Rendered frames, results of this version of the mark, and searches of this version of the detector."""

    def __init__(self, folder: Path) -> None:
        code = {path.name: statements(path) for path in sorted(Path(watermark.__file__).parent.glob("*.py"))}
        detector = [text for name, text in code.items() if name != "embed.py"]
        mark, search = (hashlib.sha256("".join(parts).encode()).hexdigest()[:12] for parts in (code.values(), detector))
        self.frames, self.results, self.searches = folder / "frames", folder / mark, folder / f"unmarked-{search}.jsonl"
        for made in (self.frames, self.results):
            made.mkdir(parents=True, exist_ok=True)

    def rendered(self, portrait: Path, size: str, animator: Callable[[], Animator]) -> Frames:
        """Frames without a mark, of even width and height."""
        file = self.frames / f"{portrait.stem}-{size}.npy"
        if not file.exists():
            np.save(file, np.stack(render(animator(), portrait, size)))
        return list(np.load(file))


def render(animator: Animator, portrait: Path, size: str, seconds: float = SECONDS) -> Frames:
    """Frames of a portrait that `speech` moves; the photo is scaled to a shorter side of 1,080 pixels first."""
    photo = read_image(portrait)
    factor = PHOTO_SIDE / min(photo.shape[:2])
    sides = [round(side * factor) for side in photo.shape[1::-1]]
    photo = cv2.resize(photo, sides, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    motion = read_motion(bundled_motion("speech"), seconds=seconds).motion
    crop = {"256": {}, "512": {"size": 512}, "photo": {"size": "native", "frame": "photo"}}[size]
    return list(animator.animate(animator.encode(photo), motion, **crop))


def payload_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def psnr(a: Sequence[Picture], b: Sequence[Picture]) -> float:
    error = np.mean([np.mean((x.astype(np.float32) - y) ** 2) for x, y in zip(a, b)])
    return float(10 * np.log10(255.0**2 / error))


def as_written(frames: Frames) -> Frames:
    """The frames of the video file that the package writes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "written.mp4"
        with VideoWriter(path, FPS, frames[0].shape[1::-1]) as writer:
            for frame in frames:
                writer.write(frame)
        return list(read_frames(path))


# Attacks


class Case:
    """One portrait at one size."""

    def __init__(self, name: str, size: str, clean: Frames) -> None:
        self.name, self.size, self.clean = name, size, clean
        self.payload = payload_of(f"{name}-{size}")
        self.watermark = Watermark(self.payload)

    def other_payload(self, number: int) -> int:
        return payload_of(f"{self.name}-{self.size}-{number}")

    @cached_property
    def marked(self) -> Frames:
        return [self.watermark.apply(frame) for frame in self.clean]

    def clip(self, others: Sequence[Frames]) -> Clip:
        marks: dict[int, Watermark] = {}

        def remark(frame: Picture, number: int) -> Picture:
            if number not in marks:
                marks[number] = Watermark(self.other_payload(number))
            return marks[number].apply(frame)

        return Clip(self.marked, as_written(self.marked), remark, self.watermark.apply, self.clean, others)

    def cost(self) -> dict[str, float]:
        """PSNR in dB, and milliseconds of processor time to mark a frame and to search the video."""
        self.watermark.apply(self.clean[0])
        start = time.process_time()
        for frame in self.clean:
            self.watermark.apply(frame)
        marking = time.process_time() - start
        start = time.process_time()
        find_watermark(iter(self.marked))
        searching = time.process_time() - start
        worst = min(psnr([a], [b]) for a, b in zip(self.clean, self.marked))
        return {
            "psnr": psnr(self.clean, self.marked),
            "worst": worst,
            "mark_ms": 1e3 * marking / len(self.clean),
            "find_ms": 1e3 * searching,
        }

    def outcome(self, attack: Attack, clip: Clip) -> dict[str, object]:
        """Whether a mark was found, how many of its 32 bits are right, and whether anybody wrote what was read."""
        found = find_watermark(np.ascontiguousarray(frame) for frame in attack.run(clip))
        bits = None if found.payload is None else 32 - (found.payload ^ self.payload).bit_count()
        written = found.payload in [self.payload, *(self.other_payload(number) for number in range(1, COPIES))]
        return {"found": found.found, "bits": bits, "written": written, "score": round(found.score, 2)}


def measure(case: Case, cache: Cache | None, chosen: Sequence[Attack], others: Callable[[], list[Frames]]) -> dict:
    """Results of one case; what the cache has is not measured again."""
    file = cache.results / f"{case.name}-{case.size}.json" if cache else None
    done = json.loads(file.read_text("utf-8")) if file and file.exists() else {"attacks": {}}
    missing = [attack for attack in chosen if f"{attack.family}|{attack.strength}" not in done["attacks"]]
    if not missing and "cost" in done:
        return done
    done.setdefault("cost", case.cost())
    clip = case.clip(others()) if missing else None
    for attack in missing:
        assert clip is not None
        done["attacks"][f"{attack.family}|{attack.strength}"] = case.outcome(attack, clip)
        if file:
            write_bytes(file, json.dumps(done).encode())
    if file:
        write_bytes(file, json.dumps(done).encode())
    return done


def show_cost(results: dict[str, list[dict]]) -> None:
    print("| size | videos | PSNR, mean | PSNR, worst frame | marking a frame | searching the video |")
    print("|---|---|---|---|---|---|")
    for size, found in results.items():
        costs = [one["cost"] for one in found]
        mean = {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}
        print(
            f"| {size} | {len(found)} | {mean['psnr']:.2f} dB | {min(cost['worst'] for cost in costs):.2f} dB "
            f"| {mean['mark_ms']:.1f} ms | {mean['find_ms'] / 1e3:.2f} s |"
        )


def whole(row: dict) -> bool:
    return row["bits"] == 32


def show_attacks(results: dict[str, list[dict]], chosen: Sequence[Attack]) -> None:
    """A row per attack: in how many videos all 32 bits were read, by size; found at all; payloads of others."""
    print(f"\n| attack | strength | {' | '.join(results)} | all 32 bits read | mark found | another payload read |")
    print(f"|---|---|{'---|' * len(results)}---|---|---|")
    for attack in chosen:
        rows = {
            size: [one["attacks"][f"{attack.family}|{attack.strength}"] for one in found]
            for size, found in results.items()
        }
        every = [row for some in rows.values() for row in some]
        by_size = " | ".join(f"{sum(map(whole, some))}/{len(some)}" for some in rows.values())
        right, other = (
            sum(test(row) for row in every) for test in (whole, lambda row: row["found"] and not whole(row))
        )
        unknown = sum(row["found"] and not row["written"] for row in every)
        others = f"{other}, {unknown} of them nobody's" if unknown else str(other)
        print(
            f"| {attack.family} | {attack.strength} | {by_size} | {right}/{len(every)} "
            f"| {sum(row['found'] for row in every)}/{len(every)} | {others} |"
        )


def show_limits(results: dict[str, list[dict]], chosen: Sequence[Attack]) -> None:
    """Two tables: attacks after which every video is read, and the limits of those that break the mark."""
    families: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"all": [], "some": [], "none": []})
    for attack in chosen:
        key, strength = f"{attack.family}|{attack.strength}", attack.strength or "yes"
        read = [whole(one["attacks"][key]) for found in results.values() for one in found]
        part = "all" if all(read) else "some" if any(read) else "none"
        families[attack.family][part].append(f"{strength} ({sum(read)} of {len(read)})" if part == "some" else strength)
    broken = {family: parts for family, parts in families.items() if parts["some"] or parts["none"]}
    print("\n| attack | all 32 bits read in every video |\n|---|---|")
    for family in [family for family in families if family not in broken]:
        print(f"| {family} | {'; '.join(families[family]['all'])} |")
    print("\n| attack that breaks the mark | read in every video | in some | in none |\n|---|---|---|---|")
    for family, parts in broken.items():
        print(f"| {family} | {' | '.join('; '.join(part) or '–' for part in parts.values())} |")


def run_attacks(portraits: Sequence[Path], sizes: Sequence[str], chosen: Sequence[Attack], cache: Cache) -> None:
    animators: list[Animator] = []

    def animator() -> Animator:
        if not animators:
            animators.append(Animator.from_pretrained(device="cpu"))
        return animators[0]

    results = defaultdict(list)
    for size in sizes:
        for portrait in portraits:
            case = Case(portrait.stem, size, cache.rendered(portrait, size, animator))

            def others(own: Path = portrait, size: str = size) -> list[Frames]:
                rest = [path for path in portraits if path.stem != own.stem]
                made = [(path.stem, cache.rendered(path, size, animator)[::5]) for path in rest]
                return [[Watermark(payload_of(f"{name}-{size}")).apply(f) for f in frames] for name, frames in made]

            start = time.perf_counter()
            results[size].append(measure(case, cache, chosen, others))
            spent = time.perf_counter() - start
            print(f"{portrait.stem} at {size}: {spent:.0f} s", file=sys.stderr, flush=True)
    show_cost(results)
    show_attacks(results, chosen)
    show_limits(results, chosen)


def named(names: set[tuple[str, str]]) -> list[Attack]:
    return [attack for attack in attacks() if (attack.family, attack.strength) in names]


def run_quick() -> None:
    """The bundled portrait, half a second at 256 pixels, a few attacks."""
    clean = render(Animator.from_pretrained(device="cpu"), bundled_portrait(), "256", seconds=0.5)
    chosen = named(QUICK)
    results = {"256": [measure(Case("bundled", "256", clean), None, chosen, list)]}
    show_cost(results)
    show_attacks(results, chosen)


# Frames without a mark


def resized(frame: Picture, side: int | None) -> Picture:
    if side is None:
        return frame
    factor = side / min(frame.shape[:2])
    size = [round(length * factor) for length in frame.shape[1::-1]]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def foreign(frame: Picture) -> Picture | None:
    """An image that another tool marked (invisible-watermark, `dwtDct`), if that is installed."""
    if importlib.util.find_spec("imwatermark") is None:
        return None
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", b"mark")
    return np.asarray(encoder.encode(cv2.cvtColor(resized(frame, 512), cv2.COLOR_RGB2BGR), "dwtDct"))[:, :, ::-1].copy()


def unmarked(folders: Sequence[Path], rendered: Path, count: int) -> Iterator[tuple[str, Frames]]:
    """Kind and frames that are searched together, always in the same order; `count` in all, if there are so many."""
    files = sorted(path for folder in folders for path in (folder.rglob("*") if folder.is_dir() else [folder]))
    images = [path for path in files if path.suffix.lower() in IMAGES]
    videos = [path for path in files if path.suffix.lower() in VIDEOS]
    made = 0
    for path in images:
        image, side = read_image(path), UNMARKED_SIDES[made % len(UNMARKED_SIDES)]
        yield "image", [resized(image, side)]
        other = foreign(image) if made % 5 == 0 else None
        if other is not None:
            yield "image marked by another tool", [other]
        made += 1 + (other is not None)
    for file in sorted(rendered.glob("*-256.npy")):
        frames = list(np.load(file))
        yield WHOLE, frames
        yield from (("frame rendered with --no-mark", [frame]) for frame in frames)
        made += 1 + len(frames)
    for left, path in zip(range(len(videos), 0, -1), videos):
        wanted = math.ceil((count - made) / left)
        frames = list(islice(read_frames(path), 600))
        if left % 10 == 0:
            yield WHOLE, frames[: SECONDS * FPS]
            made += 1
        for number in np.unique(np.linspace(0, len(frames) - 1, min(wanted, len(frames))).round().astype(int)):
            yield "frame of a video", [resized(frames[number], UNMARKED_SIDES[made % len(UNMARKED_SIDES)])]
            made += 1


def searched(item: tuple[str, Frames]) -> str:
    kind, frames = item
    found = find_watermark(frames)
    return json.dumps([kind, list(frames[0].shape[:2]), found.score, found.false_positive, found.found])


def run_unmarked(folders: Sequence[Path], count: int, processes: int, cache: Cache, figure: Path | None) -> None:
    """Go on where the cache ends, then print a table and save the histogram."""
    file = cache.searches
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    start = time.perf_counter()
    frames = islice(unmarked(folders, cache.frames, count), len(lines), count) if len(lines) < count else iter(())
    with ExitStack() as stack:
        out = stack.enter_context(open(file, "a", encoding="utf-8"))
        search = map if processes == 1 else stack.enter_context(Pool(processes)).map
        while some := list(islice(frames, 64)):
            new = list(search(searched, some))
            out.write("\n".join(new) + "\n")
            out.flush()
            lines += new
            print(f"{len(lines)} frames, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    show_unmarked([json.loads(line) for line in lines[:count]], figure)


def show_unmarked(rows: Sequence[list], figure: Path | None) -> None:
    print("| without a mark | searches | largest score | smallest stated probability | found |")
    print("|---|---|---|---|---|")
    kinds = list(dict.fromkeys(row[0] for row in rows))
    for kind in [*kinds, "all"]:
        some = [row for row in rows if kind in ("all", row[0])]
        print(
            f"| {kind} | {len(some):,} | {max(row[2] for row in some):.2f} | {min(row[3] for row in some):.1e} "
            f"| {sum(row[4] for row in some)} |"
        )
    if figure is not None:
        draw_histogram(np.array([row[2] for row in rows if row[0] != WHOLE]), figure)


def draw_histogram(scores: np.ndarray, path: Path) -> None:
    """How many frames score higher than s, beside the number that the detector's statistics expect."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from export3d.provenance.watermark.detect import LARGEST_FALSE_POSITIVE, LOG_HYPOTHESES

    place = np.linspace(scores.min() - 0.2, 14, 400)
    expected = len(scores) * np.exp(np.minimum(LOG_HYPOTHESES - place**2 / 2, 0.0))
    threshold = math.sqrt(2 * (LOG_HYPOTHESES - math.log(LARGEST_FALSE_POSITIVE)))
    shown, axes = plt.subplots(figsize=(7, 3.4), dpi=110)
    bins = np.arange(np.floor(scores.min() * 5) / 5, 14.01, 0.1)
    axes.hist(scores, bins, color="#7a9cc6", label=f"{len(scores):,} frames without a mark, by score")
    axes.plot(np.sort(scores), np.arange(len(scores), 0, -1), color="#1f3b66", label="frames above this score")
    axes.plot(place, expected, color="#c0392b", label="above it at most, by the detector's statistics")
    axes.axvline(threshold, color="#555", linestyle="--", label=f"threshold, {threshold:.1f}")
    axes.set(yscale="log", ylim=(1e-4, 2 * len(scores)), xlabel="score", ylabel="frames")
    axes.legend(fontsize=8, loc="upper right")
    shown.tight_layout()
    buffer = io.BytesIO()
    shown.savefig(buffer, format="png")
    plt.close(shown)
    write_webp(path, np.asarray(Image.open(buffer).convert("RGB")))


# For looking at


def write_webp(path: Path, image: Picture) -> None:
    """Without the marks that the package's own writers add."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=82, method=6)
    write_bytes(path, buffer.getvalue())


def write_sheet(path: Path, portraits: Sequence[Path], sizes: Sequence[str], cache: Cache) -> None:
    """A row per portrait and size: the frame, the marked frame, ten times their difference around grey."""
    rows = []
    for portrait in portraits:
        for size in sizes:
            frame = cache.rendered(portrait, size, lambda: Animator.from_pretrained(device="cpu"))[0]
            marked = Watermark(payload_of(f"{portrait.stem}-{size}")).apply(frame)
            difference = np.clip(128 + 10 * (marked.astype(np.int16) - frame), 0, 255).astype(np.uint8)
            rows.append([fitted(image, 400) for image in (frame, marked, difference)])
    headings = [["frame", "marked", "difference x 10"], *[""] * (len(rows) - 1)]
    write_webp(path, contact_sheet(rows, headings))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--portraits", type=Path, nargs="+", default=[])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--bars", action="store_true", help="only what the mark is made to survive")
    parser.add_argument("--unmarked", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=1, help="for --unmarked")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.quick:
        run_quick()
        return
    if options.cache is None:
        parser.error("name a folder for frames and results: --cache FOLDER")
    cache = Cache(options.cache)
    portraits = options.portraits or [bundled_portrait()]
    if options.unmarked:
        run_unmarked(options.unmarked, options.frames, options.processes, cache, options.figure)
    elif options.sheet:
        write_sheet(options.sheet, portraits, options.sizes, cache)
    else:
        run_attacks(portraits, options.sizes, named(BARS) if options.bars else attacks(), cache)


if __name__ == "__main__":
    main()
