"""Does a trick of the training help? One short run each, with equal budgets: docs/training-log.md has the results.

    python benchmarks/data_engine.py DATA OUT --pseudo SPLIT --networks FOLDER --reader FILE --images 800

DATA is a folder that `export3d prepare` made, SPLIT one of `export3d pseudo-clips`; FOLDER has
squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS), FILE is the reader.safetensors of `export3d pretrain`.

Every row is `export3d train` with one change, from the same untrained start (whose motion is fitted to landmarks once,
in OUT/start), and one `export3d evaluate` on DATA/val. Started again it leaves finished rows alone, goes on with a row
that was cut, and with a larger number of images goes on with all. OUT/table.md compares the rows with the baseline;
what three seeds of the pairs differ by is the noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS: dict[str, list[str]] = {
    "baseline": [],
    "baseline, seed 1": ["loop.seed=1"],
    "no pseudo-clips": ["data.pseudo_fraction=0"],
    "no hard pairs": ["data.hard_fraction=0"],
    "curriculum of hard pairs": ["data.curriculum_images={IMAGES}"],
    "identity 0.1": ["loss.identity=0.1"],
    "expression 0.05": ["loss.expression=0.05", "loss.reader={READER}"],
    "density 0.002": ["loss.density=0.002"],
    "no eye and mouth weights": ["loss.face_emphasis=0"],
    "no mirror images": ["data.mirror=false"],
    "no crops and colours": ["data.augment=false"],
    "no flow error": ["loss.flow=0"],
    "baseline, seed 2": ["loop.seed=2"],
}
"""Row to its changes: settings as for --set."""
SETTINGS = """
[train.model]
variants = ["clebs"]
image_size = 128
motion_steps = 300

[train.render]
coarse = 16
fine = 0

[train.loss]
backbone = "squeeze"
l2 = 2
lpips = 0.5
lpips_raw = 0
face_emphasis = 20
flow = 10

[train.data]
still_fraction = 0.2
pseudo_fraction = 0.2
hard_fraction = 0.6

[train.loop]
batch_size = 8
precision = "fp32"
channels_last = false
lr = 6e-4
warmup_images = 200
decay = "none"
ema_rampup = 0.05
ema_halflife_images = 200
log_every = 80
sheet_every = 0
validate_every = 1_000_000
save_every = 1_000_000
progress = false
tensorboard = false
"""
"""Of all rows: those of the runs in docs/training-log.md, with a shorter warm-up."""
COLUMNS = {
    "psnr": ("PSNR", 2),
    "lpips": ("LPIPS", 4),
    "akd": ("AKD", 2),
    "csim_dlib": ("CSIM", 3),
    "aed": ("AED", 4),
    "apd": ("APD", 2),
    "yaw": ("yaw", 2),
    "jawOpen": ("jawOpen", 2),
    "eyeBlink": ("eyeBlink", 2),
}
VALIDATION = "PSNR, 64 pairs"
SEEDS = ("baseline, seed 1", "baseline, seed 2")


def main() -> int:
    """Train and score what is missing, then print the table."""
    args = arguments()
    features, heads = args.networks / "squeezenet1_1_features_fp32.pth", args.networks / "squeeze.pth"
    lpips = ["--backbone-file", str(features), "--heads-file", str(heads)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "settings.toml").write_text(SETTINGS)
    common = ["--recipe", "base", "--config", str(args.out / "settings.toml"), "--pseudo", str(args.pseudo)]
    common += ["--cache", str(args.cache or args.out / "cache")]
    common += changes(f"loss.backbone_file={features}", f"loss.heads_file={heads}")
    start = args.start or args.out / "start" / "weights.safetensors"
    if not start.is_file():
        export3d("train", str(args.data), "-o", str(start.parent), *common, *changes("loop.max_images=8"))
    for name in args.rows or ROWS:
        folder = folder_of(args.out, name)
        if images_of(folder) < args.images:
            places = {"IMAGES": str(args.curriculum), "READER": str(args.reader)}
            change = [setting.format(**places) for setting in ROWS[name]]
            begun = ["--from-pretrained", str(start), *changes(f"loop.max_images={args.images}", *change)]
            export3d("train", str(args.data), "-o", str(folder), *common, *begun)
            if images_of(folder) < args.images:
                sys.exit(f"{name} was stopped; start this again to go on")
    found = {}
    for name in args.rows or ROWS:
        folder = folder_of(args.out, name)
        scores = folder / f"scores_{args.images}"
        if not (scores / "report.json").is_file():
            weights = ["--weights", str(folder / "weights.safetensors"), "--every", str(args.every)]
            export3d("evaluate", "same", str(args.data), "-o", str(scores), "--references", "copy", *weights,
                     "--backbone", "squeeze", *lpips)  # fmt: skip
        found[name] = read(folder, scores)
        (args.out / "table.md").write_text(table(found))
    print(table(found))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("--pseudo", "--networks", "--reader"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="decoded frames, as for export3d train")
    parser.add_argument("--start", type=Path, help="weights to begin with instead of untrained ones")
    parser.add_argument("--images", type=int, default=800, help="seen by each row")
    parser.add_argument("--curriculum", type=int, default=400, help="images over which hard pairs come in")
    parser.add_argument("--every", type=int, default=16, help="score every so-many-th frame")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="all by default; the baseline first")
    return parser.parse_args()


def changes(*settings: str) -> list[str]:
    """Options for settings."""
    return [word for setting in settings for word in ("--set", setting)]


def export3d(*words: str) -> None:
    """Run a command of the package; ends the script where it fails."""
    if subprocess.run([sys.executable, "-m", "export3d", *words], check=False, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"export3d {words[0]} failed; see above")


def folder_of(out: Path, row: str) -> Path:
    """Where a row's run and scores are."""
    return out / row.replace(" ", "_").replace(",", "")


def images_of(folder: Path) -> int:
    """Images that a row has seen, by its log."""
    return max((line["images_seen"] for line in log(folder)), default=0)


def log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read(folder: Path, scores: Path) -> dict[str, float]:
    """A row's figures: of its own validation pairs, and means over the moving clips."""
    validated = [line["figures"] for line in log(folder) if line["kind"] == "validation"]
    moving = json.loads((scores / "report.json").read_text())["summary"]["moving"]["mean"]["ours"]
    return {VALIDATION: validated[-1]["psnr"], **{name: moving[name]["mean"] for name in COLUMNS}}


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: the baseline's figures, and what every other row differs from them by; bold beyond the noise."""
    digits = {VALIDATION: 2, **{name: count for name, (_, count) in COLUMNS.items()}}
    lines = [["", VALIDATION, *(title for title, _ in COLUMNS.values())], ["---"] * (len(digits) + 1)]
    base = found["baseline"]
    noise = {name: max((abs(found[s][name] - base[name]) for s in SEEDS if s in found), default=0.0) for name in base}
    for row, values in found.items():
        cells = []
        for name, count in digits.items():
            change = values[name] - base[name]
            text = f"{values[name]:.{count}f}" if row == "baseline" else f"{change:+.{count}f}"
            cells.append(f"**{text}**" if abs(change) > noise[name] and row not in SEEDS else text)
        lines.append([row, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
