"""Where a person is in a picture: MediaPipe's selfie segmentation, 256 x 256 pixels."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.errors import Export3DError
from export3d.face.native import Task

MODEL_FILE = "person_segmentation.tflite"
_SEEN = 256


class PersonSegmenter(Task):
    """MediaPipe's selfie segmentation with the packaged model; close it, or use it in a `with` statement.

    Raises:
        MissingExtra: mediapipe is not installed.
        Export3DError: mediapipe or the model cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            model = (resources.files("export3d") / "assets" / MODEL_FILE).read_bytes()
        except OSError as error:
            raise Export3DError(f"the packaged {MODEL_FILE} cannot be read ({error}); reinstall export3d") from error

        def create(mediapipe: Any) -> Any:
            vision = mediapipe.tasks.vision
            options = vision.ImageSegmenterOptions(
                base_options=mediapipe.tasks.BaseOptions(model_asset_buffer=model),
                running_mode=vision.RunningMode.IMAGE,
                output_confidence_masks=True,
                output_category_mask=False,
            )
            return vision.ImageSegmenter.create_from_options(options)

        super().__init__(create, "segment", "person segmentation model")

    def mask(self, image: NDArray[np.uint8], region: tuple[float, float, float, float]) -> NDArray[np.float32]:
        """Probability of a person, (256, 256) in [0, 1], in a rectangle (left, top, right, bottom) inside the image.

        The mean over the rectangle and its mirror image.
        """
        self._check_open("person segmenter")
        x, y = int(region[0]), int(region[1])
        part = Image.fromarray(image[y : int(np.ceil(region[3])), x : int(np.ceil(region[2]))])
        box = (region[0] - x, region[1] - y, region[2] - x, region[3] - y)
        seen = np.asarray(part.resize((_SEEN, _SEEN), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
        masks = np.zeros((2, _SEEN, _SEEN), np.float32)
        for mask, way in zip(masks, (1, -1)):
            result = self._native.segment(self._picture(seen[:, ::way]))  # its arrays live as long as it does
            mask[:] = result.confidence_masks[0].numpy_view().reshape(_SEEN, _SEEN)[:, ::way]
        return np.asarray(masks.mean(0).clip(0, 1), np.float32)
