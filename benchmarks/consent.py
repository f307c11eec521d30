"""False accepts and false rejects of the consent register on your own photos: the tables of docs/consent.md.

    python benchmarks/consent.py --manifest data/manifest.csv

The manifest has the columns file, person, kind (image or video) and source; paths are relative to its folder. Of each
video, FRAMES frames spread over the head's yaw are used. Faces are tracked once and kept in a cache beside the system's
temporary files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from export3d.camera import head_angles
from export3d.consent.check import THRESHOLD
from export3d.consent.descriptor import network, of_chips
from export3d.errors import Export3DError
from export3d.face.identity import DlibIdentity, unit
from export3d.face.landmark_sets import CHEEKS
from export3d.face.tracker import Tracker
from export3d.image import read_image
from export3d.video import read_frames

FRAMES, LOOKED_AT = 4, 12
"""Frames of a video that are used, and frames among which they are chosen."""
SAME_PHOTO = 0.98
"""Correlation of aligned faces above which two files of a person hold the same photo."""
MOST = 16
"""Pairs of one person that are used, drawn at random, so that nobody with many videos decides a rate."""
THRESHOLDS = (0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96)
SOURCES = 6
"""Pairs of sources with a row of their own."""
TONES = (10.0, 28.0, 41.0, 55.0)
"""Edges of the groups of the individual typology angle (Del Bino and Bernerd 2013), degrees."""


@dataclass
class Faces:
    """N tracked faces.

    Attributes:
        row: (N,) line of the manifest.
        chip: (N, 150, 150, 3) uint8, what the network sees.
        yaw: (N,) degrees.
        light: (N,) mean luma of the face, 0 to 255.
        tone: (N,) individual typology angle of the cheeks, degrees.
    """

    row: NDArray
    chip: NDArray
    yaw: NDArray
    light: NDArray
    tone: NDArray


def tracked(manifest: list[dict[str, str]], folder: Path) -> Faces:
    """Every face of the manifest; what cannot be read or shows no face is left out."""
    found = []
    with Tracker() as tracker:
        for row, line in enumerate(tqdm(manifest, "tracking")):
            faces = []
            for image in images(folder / line["file"], line):
                try:
                    track = tracker.track_image(image, line["file"])
                except Export3DError:
                    continue
                points = track.crop.from_crop(track.landmarks[0])
                chip = DlibIdentity.chip(image, points).round().byte().permute(1, 2, 0).numpy()
                yaw = float(head_angles(track.motion.camera[0])[0])
                faces.append((row, chip, yaw, luma(chip[30:120, 30:120]).mean(), typology_angle(image, points)))
            faces.sort(key=lambda face: face[2])
            chosen = np.unique(np.linspace(0, len(faces) - 1, FRAMES).round().astype(int)) if faces else []
            found += [faces[k] for k in chosen]
    return Faces(*(np.array(values) for values in zip(*found)))


def images(path: Path, line: dict[str, str]) -> Iterator[NDArray[np.uint8]]:
    if line["kind"] == "image":
        yield read_image(path)
        return
    frames = list(read_frames(path))
    for k in np.unique(np.linspace(0, len(frames) - 1, LOOKED_AT).round().astype(int)):
        yield frames[k]


def luma(pixels: NDArray[np.uint8]) -> NDArray:
    """Rec. 601, 0 to 255."""
    return pixels @ np.array([0.299, 0.587, 0.114])


def typology_angle(image: NDArray[np.uint8], points: NDArray) -> float:
    """Individual typology angle of both cheeks, degrees: atan2(L* - 50, b*), median over a patch (CIELAB, D65)."""
    side = max(2, round(0.06 * float(np.linalg.norm(points[10] - points[152]))))
    patches = []
    for cheek in CHEEKS:
        x, y = points[cheek].round().astype(int)
        patches.append(image[max(0, y - side) : y + side + 1, max(0, x - side) : x + side + 1].reshape(-1, 3))
    rgb = np.median(np.concatenate(patches), axis=0) / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return float(np.degrees(np.arctan2(116.0 * f[1] - 16.0 - 50.0, 200.0 * (f[1] - f[2]))))


def cached(manifest: Path, lines: list[dict[str, str]]) -> tuple[Faces, NDArray, NDArray]:
    """`tracked`, the descriptors (N, 128), and those of the face without its mirror image; from the cache if there."""
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]
    cache = Path(tempfile.gettempdir()) / f"export3d-consent-{digest}.npz"
    if not cache.exists():
        np.savez(cache, **vars(tracked(lines, manifest.parent)))
    with np.load(cache) as arrays:
        faces = Faces(**arrays)
    described = cache.with_name(f"{cache.stem}-{network()}.npz")
    if not described.exists():
        chips = [torch.from_numpy(chip).permute(2, 0, 1).float() for chip in faces.chip]
        dlib = DlibIdentity()
        with torch.inference_mode():
            plain = torch.cat([dlib.vectors(chip[None]) for chip in tqdm(chips, "without mirroring")])
        np.savez(described, mirrored=of_chips(tqdm(chips, "describing")), plain=unit(plain.numpy()))
    with np.load(described) as arrays:
        return faces, arrays["mirrored"], arrays["plain"]


@dataclass
class Pairs:
    """P pairs of faces of different files, or of one video.

    Attributes:
        a, b: (P,) numbers of the faces.
        cosine: (P,) similarity of the descriptors.
        same: (P,) bool, whether they are of one person.
        one_file: (P,) bool, whether they are frames of one video.
    """

    a: NDArray
    b: NDArray
    cosine: NDArray
    same: NDArray
    one_file: NDArray

    def of(self, chosen: NDArray) -> Pairs:
        return Pairs(*(values[chosen] for values in vars(self).values()))


def all_pairs(faces: Faces, vectors: NDArray, person: NDArray) -> tuple[Pairs, int]:
    """All pairs but those that show the same photo, and the number of these."""
    a, b = np.triu_indices(len(vectors), 1)
    who = person[faces.row]
    cosine = (
        np.einsum("pd,pd->p", vectors[a], vectors[b], optimize=True) if len(a) < 1e5 else (vectors @ vectors.T)[a, b]
    )
    pairs = Pairs(a, b, cosine, who[a] == who[b], faces.row[a] == faces.row[b])
    twice = pairs.same & ~pairs.one_file & same_photo(faces, pairs)
    return pairs.of(~twice), int(twice.sum())


def capped(pairs: Pairs, who: NDArray) -> Pairs:
    """The pairs with at most `MOST` of each person with themselves."""
    rng, keep = np.random.default_rng(0), ~pairs.same
    own = np.flatnonzero(pairs.same)
    for name in np.unique(who[pairs.a[own]]):
        mine = own[who[pairs.a[own]] == name]
        keep[rng.choice(mine, MOST, replace=False) if len(mine) > MOST else mine] = True
    return pairs.of(keep)


def same_photo(faces: Faces, pairs: Pairs) -> NDArray:
    """Whether the two faces of one person are the same photo: their grey chips correlate by more than `SAME_PHOTO`."""
    grey = luma(faces.chip[:, 15:135, 15:135]).reshape(len(faces.chip), 40, 3, 40, 3).mean((2, 4)).reshape(-1, 1600)
    grey -= grey.mean(1, keepdims=True)
    grey /= np.linalg.norm(grey, axis=1, keepdims=True)
    found = np.zeros(len(pairs.a), bool)
    at = np.flatnonzero(pairs.same)
    found[at] = (grey[pairs.a[at]] * grey[pairs.b[at]]).sum(1) > SAME_PHOTO
    return found


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, count / total
    middle, half = share + z * z / (2 * total), z * np.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    return max(0.0, (middle - half) / (1 + z * z / total)), (middle + half) / (1 + z * z / total)


def rate(count: int, total: int) -> str:
    """A share in per cent with its count and interval."""
    if not total:
        return "no pairs"
    low, high = wilson(count, total)
    return f"{percent(count / total)} ({count:,} of {total:,}; {percent(low)} to {percent(high)})"


def percent(share: float) -> str:
    """Two significant digits.

    >>> percent(0.0000612), percent(0.0717), percent(0.0)
    ('0.0061 %', '7.2 %', '0 %')
    """
    return f"{float(f'{100 * share:.2g}'):f}".rstrip("0").rstrip(".") + " %"


def accepts(pairs: Pairs, threshold: float = THRESHOLD) -> str:
    """False accepts among the pairs of different people."""
    strangers = pairs.cosine[~pairs.same]
    return rate(int((strangers >= threshold).sum()), len(strangers))


def rejects(pairs: Pairs, threshold: float = THRESHOLD) -> str:
    """False rejects among the pairs of one person."""
    own = pairs.cosine[pairs.same]
    return rate(int((own < threshold).sum()), len(own))


def equal_error(pairs: Pairs) -> tuple[float, float]:
    """The threshold at which both rates are equal, and the rate."""
    own, strangers = np.sort(pairs.cosine[pairs.same]), np.sort(pairs.cosine[~pairs.same])
    at = np.linspace(0.7, 1.0, 3001)
    rejected = np.searchsorted(own, at) / len(own)
    accepted = 1 - np.searchsorted(strangers, at) / len(strangers)
    best = int(np.argmin(np.abs(rejected - accepted)))
    return float(at[best]), float((rejected[best] + accepted[best]) / 2)


def bands(values: NDArray, edges: tuple[float, ...], unit: str) -> dict[str, NDArray]:
    """Which values lie in each band between the edges, by the band's name."""
    ends = (-np.inf, *edges, np.inf)
    names = [f"below {edges[0]:g}{unit}", *(f"{a:g} to {b:g}{unit}" for a, b in pairwise(edges))]
    names.append(f"{edges[-1]:g}{unit} and more")
    return {name: (values >= low) & (values < high) for name, low, high in zip(names, ends, ends[1:])}


def table(title: str, pairs: Pairs, groups: dict[str, tuple[NDArray, NDArray]]) -> None:
    """One row per group: the pairs of one person, and the pairs of different people."""
    print(f"\n| {title} | false rejects | false accepts |\n|---|---|---|")
    for name, (own, strangers) in groups.items():
        print(f"| {name} | {rejects(pairs.of(own & pairs.same))} | {accepts(pairs.of(strangers & ~pairs.same))} |")


def report(faces: Faces, vectors: NDArray, plain: NDArray, lines: list[dict[str, str]]) -> None:
    person = np.array([line["person"] for line in lines])
    source = np.array([line["source"] for line in lines])[faces.row]
    video = np.array([line["kind"] == "video" for line in lines])[faces.row]
    every, twice = all_pairs(faces, vectors, person)
    pairs = capped(every.of(~every.one_file), person[faces.row])
    print(
        f"{len(faces.row):,} faces of {len(set(person[faces.row])):,} people; {pairs.same.sum():,} pairs of one "
        f"person, {(~pairs.same).sum():,} of different people; {twice} pairs show the same photo and are left out"
    )
    threshold, error = equal_error(pairs)
    print(f"equal-error rate {percent(error)} at {threshold:.4f}")
    print("\n| threshold | false rejects | false accepts |\n|---|---|---|")
    for at in sorted({*THRESHOLDS, THRESHOLD}):
        print(f"| {at:.3f} | {rejects(pairs, at)} | {accepts(pairs, at)} |")
    a, b = pairs.a, pairs.b
    alone = replace(pairs, cosine=(plain @ plain.T)[a, b])
    equal = np.sort(alone.cosine[~pairs.same])[-int((pairs.cosine[~pairs.same] >= THRESHOLD).sum())]
    print(f"\nwithout the mirrored face, at {equal:.4f}: {rejects(alone, equal)}, {accepts(alone, equal)}")
    kinds = {
        "two photos": ~video[a] & ~video[b],
        "a photo and a video's frame": video[a] != video[b],
        "frames of two videos": video[a] & video[b],
    }
    table("pair", pairs, {name: (chosen, chosen) for name, chosen in kinds.items()})
    print(f"| frames of one video | {rejects(capped(every.of(every.one_file), faces.row))} | |")
    both = np.array([" + ".join(sorted({one, two})) for one, two in zip(source[a[pairs.same]], source[b[pairs.same]])])
    origins = np.full(len(a), "", dtype=both.dtype)
    origins[pairs.same] = both
    most = [name for name, _ in Counter(both.tolist()).most_common(SOURCES)]
    rest = pairs.same & ~np.isin(origins, most)
    print("\n| source of a person's two files | false rejects |\n|---|---|")
    for name, chosen in [*((name, origins == name) for name in most), ("others", rest)]:
        print(f"| {name} | {rejects(pairs.of(chosen))} |")
    darker = bands(np.minimum(faces.light[a], faces.light[b]), (80, 120, 160), "")
    table("light: mean luma of the darker face", pairs, {name: (chosen, chosen) for name, chosen in darker.items()})
    contrast = bands(np.abs(faces.light[a] - faces.light[b]), (20, 50), "")
    table("difference of the light", pairs, {name: (chosen, chosen) for name, chosen in contrast.items()})
    turned = bands(np.maximum(np.abs(faces.yaw[a]), np.abs(faces.yaw[b])), (10, 20, 30), "°")
    table("pose: yaw of the more turned face", pairs, {name: (chosen, chosen) for name, chosen in turned.items()})
    apart = bands(np.abs(faces.yaw[a] - faces.yaw[b]), (10, 20, 30), "°")
    table("difference of the yaw", pairs, {name: (chosen, chosen) for name, chosen in apart.items()})
    tones = zip(bands(faces.tone[a], TONES, "°").items(), bands(faces.tone[b], TONES, "°").values())
    table("typology angle of both", pairs, {name: (one & two, one & two) for (name, one), two in tones})
    print()
    registered(faces, vectors, person)


def registered(faces: Faces, vectors: NDArray, person: NDArray) -> None:
    """False rejects with one and with two files of a person in the register, where there are three or more."""
    frontal = {int(row): vectors[at[np.argmin(np.abs(faces.yaw[at]))]] for row in np.unique(faces.row)
               if len(at := np.flatnonzero(faces.row == row))}  # fmt: skip
    files: dict[str, list[NDArray]] = {}
    for row, vector in frontal.items():
        files.setdefault(person[row], []).append(vector)
    found: dict[int, list[float]] = {1: [], 2: []}
    people = [mine for mine in files.values() if len(mine) > 2]
    for mine in people:
        others = [np.delete(row, k) for k, row in enumerate(np.stack(mine) @ np.stack(mine).T)]
        found[1].append(float(np.mean([row < THRESHOLD for row in others])))
        found[2].append(float(np.mean([max(two) < THRESHOLD for row in others for two in combinations(row, 2)])))
    print(
        f"mean of the false rejects of {len(people)} people with three or more files: one file registered "
        f"{percent(float(np.mean(found[1])))}, two {percent(float(np.mean(found[2])))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--manifest", required=True, type=Path)
    options = parser.parse_args()
    logging.getLogger("export3d").setLevel(logging.ERROR)
    with options.manifest.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    report(*cached(options.manifest, lines), lines)


if __name__ == "__main__":
    main()
