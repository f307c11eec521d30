"""Animates a portrait without PyTorch and without export3d: python onnx_animate.py DIR MOTION.motion OUT.webp

`export3d export --portrait PHOTO -o DIR` writes DIR, and `export3d track VIDEO -o MOTION.motion` the motion.
"""

import json
import sys

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image


def run(graph, known):
    given = {value.name: known[value.name] for value in graph.get_inputs()}
    return known | dict(zip((value.name for value in graph.get_outputs()), graph.run(None, given)))


def frames(folder, motion):
    """Images, uint8 (H, W, 3): the portrait moves as the face of the motion does from its first frame on."""
    encoder, planes, frame = (InferenceSession(f"{folder}/{name}.onnx") for name in ("encoder", "planes", "frame"))
    source = run(encoder, dict(np.load(f"{folder}/portrait.npz"))) | {"shoulders": np.zeros((1, 5), np.float32)}
    own, pose = source["source_expression"], source["source_camera"][0, :16].reshape(4, 4)
    with open(motion, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        numbers, count = np.frombuffer(file.read(), "<f4"), header["camera"]["shape"][0]
    expressions, cameras = (x.reshape(count, -1) for x in np.split(numbers[: 77 * count], [52 * count]))
    turns = cameras[:, :16].reshape(-1, 4, 4)[:, :3, :3]
    for expression, turn in zip(expressions, turns):
        turned, camera = pose.copy(), source["source_camera"].copy()
        turned[:3] = pose[:3, :3] @ turns[0].T @ turn @ pose[:3, :3].T @ pose[:3]
        camera[0, :16] = turned.ravel()
        driving = {"expression": (own + expression - expressions[0]).clip(0, 1), "camera": camera}
        image = run(frame, run(planes, source | driving))["image"][0]
        yield ((image.transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)


if __name__ == "__main__":
    first, *others = map(Image.fromarray, frames(*sys.argv[1:3]))
    first.save(sys.argv[3], save_all=True, append_images=others, duration=40)
