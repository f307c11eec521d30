"""The t-SNE plot of expressions, coloured by person."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from export3d.errors import MissingExtra

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]


def tsne_figure(panels: Mapping[str, Array], frames: int) -> Picture:
    """t-SNE (perplexity 30, exact, PCA start, seed 0) of each panel's features, one colour per person: uint8 (H, W, 3).

    Args:
        panels: heading to features (P * frames, k); person p has the rows from p * frames on.
        frames: number per person.
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
