"""Does an expression still tell whose it is? Figure 7 of the paper, and figures beyond it, in numbers.

Every representation of beta (raw, standardised, reduced, through an untrained LeBS, through trained encoders) gets the
same questions: can a classifier name the person from it (`probe`), how far do neutral faces lie apart compared with the
way from neutral to smiling (`held_expression`), how many dimensions does it use (`effective_rank`). What is fitted is
fitted on the training split's videos, without the people who are asked about. Retrieval, which needs the image encoder
of the pre-training, is here as a function (`retrieval_accuracy`). Exact definitions: docs/evaluation.md.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.animate.export import check_output, make_folder, write_still
from export3d.data.shards import Record, read_shards
from export3d.errors import InputError, MissingExtra, check_shape
from export3d.evaluation.reports.statistics import bootstrap
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.files import check_input, write_bytes
from export3d.pretrained import load_pretrained
from export3d.weights.file import load_weights
from export3d.weights.names import find

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Picture = NDArray[np.uint8]
Encode = Callable[[NDArray[np.float32]], Array]
"""beta (N, E) to features (N, k)."""
Statistic = Callable[[Rows], Array]
"""People drawn (..., P) to a figure (...)."""

SPLITS = ("train", "val")
HELD_OUT = "val"
COMPONENTS = 10
UNTRAINED_SEEDS = 5
SEAM_FRAMES = 25
"""Left out between the two halves of a clip: a second, so that no test frame resembles a neighbour in training."""
MIN_HALF_FRAMES = 10
PROBE_C = 1.0
MIN_DEVIATION = 0.02
"""Floor of a score's deviation, as in `ExpressionEncoder.standardise`."""
TSNE_PEOPLE = 10
TSNE_FRAMES = 10
FIGURES = {
    "linear": "linear probe",
    "neighbour": "1-NN probe",
    "held": "held expression",
    "held_val": "held expression, val",
    "rank": "effective rank",
}
"""Key of a figure to its heading; for all but the last, lower is less appearance."""


def spread_frames(usable: NDArray[np.bool_], count: int = 33) -> NDArray[np.int64]:
    """Frame numbers (count,), ascending and evenly spaced in time, among the usable ones of a clip.

    The first and the last usable frame are among them. Each of the others is the usable frame at an evenly spaced rank,
    so that no frame comes twice.

    Args:
        usable: (T,) bool; for example `FrameStore.found[clip.rows].numpy()`.
        count: how many; at least 1.

    Raises:
        InputError: the clip has fewer usable frames.
    """
    rows = np.flatnonzero(np.asarray(usable))
    if not 1 <= count <= len(rows):
        raise InputError(f"the clip has {len(rows)} usable frames and {count} are asked for; leave the clip out")
    return np.asarray(rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)], np.int64)


def retrieval_accuracy(image_embeddings: Tensor, expression_embeddings: Tensor, k: int = 5) -> float:
    """Share of the T frames of a clip whose own beta' is among the k nearest of the clip's T by cosine.

    Row i of both belongs to frame i. An expression as near as the frame's own counts as nearer, so that an encoder that
    gives every frame the same embedding scores 0 and not 1; chance is k / T.

    Args:
        image_embeddings: (T, d), f_I of the frames.
        expression_embeddings: (T, d), f_e of their expressions.
        k: 1 to T.
    """
    check_shape(image_embeddings, "T d", "image_embeddings")
    check_shape(expression_embeddings, "{} {}".format(*image_embeddings.shape), "expression_embeddings")
    cosine = F.normalize(image_embeddings.double(), dim=-1) @ F.normalize(expression_embeddings.double(), dim=-1).mT
    nearer = (~(cosine < cosine.diagonal()[:, None])).sum(-1) - 1  # so that NaN is no hit
    return float((nearer < k).double().mean())


@dataclass(frozen=True)
class Representation:
    """A way to write expressions, asked about as one row of the table.

    Attributes:
        name: of the row.
        encoders: one, or several of a kind that differ by their seed alone and are averaged.
    """

    name: str
    encoders: tuple[Encode, ...]


@dataclass(frozen=True)
class Figure:
    """A number, its 95 % bootstrap interval over people, and its standard deviation over seeds, where there are any."""

    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None

    def cell(self) -> str:
        """Markdown."""
        text = f"{self.value:.2f}" + (f" ± {self.deviation:.2f}" if self.deviation is not None else "")
        return text + (f" [{self.low:.2f}, {self.high:.2f}]" if self.low is not None else "")


@dataclass(frozen=True)
class ExpressionReport:
    """The answers.

    Attributes:
        settings: everything that decides the numbers.
        rows: representation to key of `FIGURES` to number.
    """

    settings: dict[str, Any]
    rows: dict[str, dict[str, Figure]]

    def to_json(self) -> str:
        """Everything, as strict JSON; what is not defined is null."""
        rows = {name: {key: asdict(value) for key, value in row.items()} for name, row in self.rows.items()}
        value = {"settings": self.settings, "figures": FIGURES, "rows": rows}
        text = json.dumps(value, indent=1, ensure_ascii=False)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        """The table and what it was made from."""
        keys = [key for key in FIGURES if any(key in row for row in self.rows.values())]
        lines = ["# Appearance left in the expression", ""]
        lines += [f"| representation | {' | '.join(FIGURES[key] for key in keys)} |", "| --- " * (len(keys) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(row[key].cell() for key in keys)} |" for name, row in self.rows.items()]
        lines += ["", "Brackets: 95 % bootstrap intervals over people; ±: standard deviation over seeds.", ""]
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items()]
        return "\n".join(lines) + "\n"


def evaluate_expression(
    data: Path | str,
    output: Path | str,
    encoders: Sequence[Path | str] = (),
    *,
    pairs: Path | str | None = None,
    people: Sequence[str] = (),
) -> ExpressionReport:
    """Measure the baselines and some encoders; write expression.json, expression.md and tsne.png.

    Args:
        data: what `export3d prepare` wrote, with the splits train and val.
        output: folder, created if need be.
        encoders: weights of encoders, or of whole models, whose encoder is taken; each a row named after its file.
        pairs: CSV with the columns person, neutral, smiling (keys of records); without it held expression is left out.
        people: whose clips the probes use, from either split; by default everyone with a clip in val.

    Raises:
        InputError: the data, the pairs or the people cannot be used.  CheckpointError: an encoder cannot be read.
        OutputError: the folder cannot be written.  MissingExtra: scikit-learn or matplotlib is missing.
    """
    output = make_folder(output)
    for name in ("expression.json", "expression.md", "tsne.png"):
        check_output(output / name)
    named = dict(zip(_row_names([Path(path) for path in encoders]), map(read_encoder, encoders)))
    records = {split: list(read_shards(Path(data) / split)) for split in SPLITS}
    report, embeddings = _measure(records, named, None if pairs is None else read_pairs(pairs), people)
    write_still(output / "tsne.png", tsne_figure(embeddings, TSNE_FRAMES))
    write_bytes(output / "expression.json", report.to_json().encode())
    write_bytes(output / "expression.md", report.markdown().encode())
    return report


def read_encoder(path: Path | str) -> ExpressionEncoder:
    """The expression encoder of a file that holds either one alone or a whole model.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    from export3d.pretrained import load_encoder

    path = find(path)
    if "model" in load_weights(path)[1]:
        return load_pretrained(path).expression
    return load_encoder(path)


def read_pairs(path: Path | str) -> list[tuple[str, str]]:
    """Keys of a neutral and a smiling record of each person, from a CSV with the columns person, neutral, smiling.

    Raises:
        InputError: it cannot be read or lacks a column.
    """
    path = check_input(path, InputError, "a CSV of portrait pairs")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [(row["neutral"], row["smiling"]) for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(f"{path} is no CSV with the columns person, neutral, smiling ({error}); correct it") from error
    if len(found) < 2:
        raise InputError(f"{path} has {len(found)} rows; held expression needs two people or more")
    return found


def baselines(beta: NDArray[np.float32]) -> list[Representation]:
    """What every encoder is compared with, fitted on training expressions (N, E).

    Raw beta; each score less its mean over its deviation (floored at 0.02); the first ten principal components of these
    and of raw beta; LeBS as it is initialised, on standardised inputs, with five seeds.
    """
    mean, deviation = beta.mean(0), np.maximum(beta.std(0), MIN_DEVIATION)

    def standardised(x: NDArray[np.float32]) -> Array:
        return np.asarray((x - mean) / deviation, np.float64)

    def untrained(seed: int) -> Encode:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = ExpressionEncoder(ExpressionConfig(inputs=beta.shape[1], n=COMPONENTS))
        encoder.standardise(torch.from_numpy(mean), torch.from_numpy(deviation))
        return coefficients_of(encoder)

    raw_axes, axes = _principal_axes(beta - mean), _principal_axes(standardised(beta))
    return [
        Representation("raw beta", (lambda x: x.astype(np.float64),)),
        Representation("z-scored beta", (standardised,)),
        Representation(f"PCA-{COMPONENTS} of raw beta", (lambda x: (x - mean) @ raw_axes,)),
        Representation(f"PCA-{COMPONENTS} of z-scored beta", (lambda x: standardised(x) @ axes,)),
        Representation("untrained LeBS", tuple(map(untrained, range(UNTRAINED_SEEDS)))),
    ]


def coefficients_of(encoder: ExpressionEncoder) -> Encode:
    """beta to lambda. Since V is orthonormal, distances between lambdas are those between beta' = lambda V."""

    @torch.no_grad()
    def encode(beta: NDArray[np.float32]) -> Array:
        return encoder.coefficients(torch.from_numpy(np.ascontiguousarray(beta))).double().numpy()

    return encode


def halves(found: NDArray[np.bool_], seam: int = SEAM_FRAMES) -> tuple[Rows, Rows]:
    """Numbers of a clip's usable frames in its first and in its second half, without `seam` frames in the middle.

    Args:
        found: (T,) bool, frames that show the face.
        seam: frames left out between the halves.
    """
    rows = np.flatnonzero(found)
    return rows[2 * rows < len(found) - seam], rows[2 * rows >= len(found) + seam]


def probe(first: Array, first_person: Rows, second: Array, second_person: Rows) -> tuple[Array, Array]:
    """Share of each person's test frames, (P,) each, that a linear and a nearest-neighbour classifier name rightly.

    Features are standardised by the mean and deviation of the training frames, one by one. Linear: multinomial logistic
    regression, L2-regularised with C = 1. Nearest neighbour: the person of the nearest training frame, Euclidean.

    Args:
        first: (N, k) training frames.  first_person: (N,) numbers 0 to P - 1.
        second: (M, k) test frames.  second_person: (M,); everyone is in both.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError as error:
        raise MissingExtra("evaluate", "scikit-learn") from error
    mean, deviation = first.mean(0), first.std(0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    first, second = (first - mean) / deviation, (second - mean) / deviation
    linear = LogisticRegression(C=PROBE_C, max_iter=2000).fit(first, first_person)
    neighbour = KNeighborsClassifier(1, algorithm="brute").fit(first, first_person)
    people = np.arange(first_person.max() + 1)
    right = [classifier.predict(second) == second_person for classifier in (linear, neighbour)]
    a, b = (np.array([hits[second_person == person].mean() for person in people]) for hits in right)
    return a, b


def held_expression(neutral: Array, smiling: Array) -> float:
    """Root mean square distance of neutral faces from their mean, over the distance from mean neutral to mean smile.

    Everyone in `neutral` wears the same expression, so the numerator is appearance (and the tracker's noise) alone; the
    denominator is the expression that all of them share. Invariant to shift, rotation and scale; NaN if nothing moves.

    Args:
        neutral, smiling: (P, k), row i of both of person i.
    """
    return float(_held_statistic(neutral, smiling)(np.arange(len(neutral))))


def effective_rank(features: Array) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues: 1 to k, and 0 for features that never change.

    Args:
        features: (N, k).
    """
    values = np.linalg.eigvalsh(np.cov(features, rowvar=False).reshape(features.shape[1], -1)).clip(min=0.0)
    if values.sum() <= 0.0:
        return 0.0
    share = values[values > 0.0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def tsne_figure(panels: Mapping[str, Array], frames: int) -> Picture:
    """t-SNE (perplexity 30, exact, PCA start, seed 0) of each panel's features, a colour a person: uint8 (H, W, 3).

    Args:
        panels: heading to features (P * frames, k); person p has the rows from p * frames on.
        frames: of each person.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
        from sklearn.manifold import TSNE
    except ImportError as error:
        package = "matplotlib" if (error.name or "").startswith("matplotlib") else "scikit-learn"
        raise MissingExtra("evaluate", package) from error
    figure = Canvas(figsize=(4.0 * len(panels), 4.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, features) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        perplexity = min(30.0, (len(features) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, method="exact", init="pca", learning_rate="auto", random_state=0)
        points = tsne.fit_transform(features)
        colours = colormaps["tab10"](np.repeat(np.arange(len(features) // frames), frames) % 10)
        axes.scatter(*points.T, c=colours, s=22)
        axes.set(title=title, xticks=[], yticks=[])
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _measure(
    records: Mapping[str, Sequence[Record]],
    encoders: Mapping[str, ExpressionEncoder],
    pairs: Sequence[tuple[str, str]] | None,
    people: Sequence[str],
) -> tuple[ExpressionReport, dict[str, Array]]:
    """The report, and the features of the t-SNE's panels."""
    clips = [record for split in SPLITS for record in records[split] if record.kind == "video"]
    held_out = {str(record.info["person"]) for record in records[HELD_OUT] if record.kind == "video"}
    probed, left_out = _probed(clips, set(people) or held_out)
    names = sorted({str(record.info["person"]) for record in probed})
    asked = {*names, *(people or held_out)}
    fitted = [r for r in records["train"] if r.kind == "video" and r.info["person"] not in asked]
    if not fitted:
        raise InputError("no training video is left to fit the baselines on; probe fewer people")
    parts = [halves(record.found) for record in probed]
    numbers = [names.index(str(record.info["person"])) for record in probed]
    first, second = (np.concatenate([r.expression[half[i]] for r, half in zip(probed, parts)]) for i in (0, 1))
    who = [np.repeat(numbers, [len(half[i]) for half in parts]) for i in (0, 1)]
    shown = [next(r for r in probed if r.info["person"] == name) for name in names[:TSNE_PEOPLE]]
    shown_beta = np.concatenate([r.expression[spread_frames(r.found, TSNE_FRAMES)] for r in shown])
    portraits = _portraits(records, pairs) if pairs is not None else {}

    representations = baselines(np.concatenate([r.expression[r.found] for r in fitted]))
    representations += [Representation(name, (coefficients_of(encoder),)) for name, encoder in encoders.items()]
    rows: dict[str, dict[str, Figure]] = {}
    for representation in representations:
        statistics: dict[str, list[Statistic]] = {}
        ranks = []
        for encode in representation.encoders:
            a, b = encode(first), encode(second)
            for key, accuracy in zip(("linear", "neighbour"), probe(a, who[0], b, who[1])):
                statistics.setdefault(key, []).append(_mean_statistic(accuracy))
            for key, (neutral, smiling) in portraits.items():
                statistics.setdefault(key, []).append(_held_statistic(encode(neutral), encode(smiling)))
            ranks.append(effective_rank(np.concatenate([a, b])))
        row = {k: _figure(len(portraits[k][0]) if k in portraits else len(names), s) for k, s in statistics.items()}
        rows[representation.name] = row | {"rank": Figure(float(np.mean(ranks)), deviation=_deviation(ranks))}
    trained = representations[-len(encoders) :] if encoders else []
    panels = [representations[0], representations[4], *trained]
    settings: dict[str, Any] = {
        "probed_people": len(names),
        "chance": round(1.0 / len(names), 4),
        "clips": ", ".join(record.key for record in probed),
        "left_out": ", ".join(left_out) or "none",
        "training_frames": len(first),
        "test_frames": len(second),
        "frames_left_out_at_the_seam": SEAM_FRAMES,
        "people_neutral_and_smiling": len(portraits["held"][0]) if portraits else 0,
        "of_them_in_val": len(portraits["held_val"][0]) if "held_val" in portraits else 0,
        "baselines_fitted_on": f"{sum(int(r.found.sum()) for r in fitted)} frames of {len(fitted)} training videos",
        "shown_in_the_figure": ", ".join(record.key for record in shown),
    }
    return ExpressionReport(settings, rows), {r.name: r.encoders[0](shown_beta) for r in panels}


def _probed(clips: Sequence[Record], people: set[str]) -> tuple[list[Record], list[str]]:
    """The clips of these people with enough frames in each half, and the keys of the others."""
    missing = people - {str(record.info["person"]) for record in clips}
    if missing:
        raise InputError(f"no clip shows {', '.join(sorted(missing))}; name people of the prepared data")
    asked = [record for record in clips if record.info["person"] in people]
    enough = [min(map(len, halves(record.found))) >= MIN_HALF_FRAMES for record in asked]
    good = [record for record, fits in zip(asked, enough) if fits]
    if len({record.info["person"] for record in good}) < 2:
        raise InputError("a probe needs clips of at least two people, each long enough to be halved; name more people")
    return good, [record.key for record, fits in zip(asked, enough) if not fits]


def _portraits(
    records: Mapping[str, Sequence[Record]], pairs: Sequence[tuple[str, str]]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Figure to neutral and smiling expressions (P, E): of everyone, and of those in val if they are two or more."""
    beta = {record.key: record.expression[0] for split in SPLITS for record in records[split]}
    held_out = {record.key for record in records[HELD_OUT]}
    missing = [key for pair in pairs for key in pair if key not in beta]
    if missing:
        raise InputError(f"the prepared data lack {len(missing)} of the pairs' portraits, such as {missing[0]}")
    chosen = {"held": pairs, "held_val": [pair for pair in pairs if held_out.issuperset(pair)]}
    stacked = {k: [np.stack([beta[pair[i]] for pair in some]) for i in (0, 1)] for k, some in chosen.items() if some}
    return {key: (neutral, smiling) for key, (neutral, smiling) in stacked.items() if len(neutral) > 1}


def _mean_statistic(values: Array) -> Statistic:
    return lambda draws: np.asarray(values[draws].mean(-1))


def _held_statistic(neutral: Array, smiling: Array) -> Statistic:
    """`held_expression` of people drawn with repetition, by way of their inner products."""
    check_shape(smiling, "{} {}".format(*neutral.shape), "smiling")
    count = len(neutral)
    centred, way = neutral - neutral.mean(0), smiling - neutral
    spread, moved = centred @ centred.T, way @ way.T

    def statistic(draws: Rows) -> Array:
        weight = np.stack([np.bincount(row, minlength=count) for row in draws.reshape(-1, draws.shape[-1])]) / count
        variance = weight @ spread.diagonal() - ((weight @ spread) * weight).sum(-1)
        distance = ((weight @ moved) * weight).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.sqrt(variance.clip(min=0.0) / distance.clip(min=0.0))).reshape(draws.shape[:-1])

    return statistic


def _figure(people: int, statistics: Sequence[Statistic]) -> Figure:
    estimate = bootstrap(people, lambda draws: np.asarray(np.mean([each(draws) for each in statistics], axis=0)))
    single = [float(each(np.arange(people))) for each in statistics]
    return Figure(estimate.mean, estimate.low, estimate.high, _deviation(single))


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values)) if len(values) > 1 else None


def _principal_axes(features: NDArray[Any]) -> Array:
    """(E, 10), columns by falling variance; signs do not matter to any figure."""
    values, vectors = np.linalg.eigh(np.cov(features.astype(np.float64), rowvar=False))
    return np.asarray(vectors[:, np.argsort(values)[::-1][:COMPONENTS]])


def _row_names(paths: Sequence[Path]) -> list[str]:
    """Stems, with their folders where stems repeat."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}" for path, stem in zip(paths, stems)]
