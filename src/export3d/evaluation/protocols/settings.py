"""Settings that the protocols share. Nothing heavy is imported here, because the command line shows them as options."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export3d.engines.names import EngineName
from export3d.errors import ConfigError
from export3d.workers.cluster import Cluster
from export3d.workers.run import Workers

Backbone = Literal["auto", "alex", "squeeze", "vgg16", "none"]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which measures are computed, and by which networks.

    Attributes:
        backbone: network behind LPIPS; auto is alex if its weights are available, else none.
        backbone_file: weights of the backbone; by default torchvision's.
        heads_file: weights of the LPIPS heads.
        faces: by default faces are measured too (landmarks, expression, pose, identity, flicker, Fréchet
            distance); --no-faces leaves these measures out, and then no tracker is needed.
        landmarks: detector behind AKD: mediapipe, or a 68-point .onnx file.
        expression: reader of expression and pose: arkit52, or a Deep3DFaceRecon .onnx file.
        identity: descriptors behind CSIM: dlib, or ArcFace .onnx files.
    """

    backbone: Backbone = "auto"
    backbone_file: Path | None = None
    heads_file: Path | None = None
    faces: bool = True
    landmarks: str = "mediapipe"
    expression: str = "arkit52"
    identity: tuple[str, ...] = ("dlib",)

    @property
    def lpips_backbone(self) -> str | None:
        """The backbone of LPIPS; None where LPIPS is left out.

        Raises:
            ConfigError: weights are given for no backbone.
        """
        weights_given = self.backbone_file is not None or self.heads_file is not None
        if self.backbone == "none" and weights_given:
            raise ConfigError("--backbone none takes no weights; leave out --backbone-file and --heads-file")
        if self.backbone == "auto":
            return "alex" if weights_given or importlib.util.find_spec("torchvision") is not None else None
        return None if self.backbone == "none" else self.backbone


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a protocol drives clips; only the engine changes figures, and only a little.

    Attributes:
        save: folder to save the images to, as `export3d evaluate predictions` reads them.
        workers: number of processes; 0 scores in this one.
        ray: score on a Ray cluster instead (extra cluster): its address, HOST:PORT or auto; without one, the processors
            of this machine.
        ray_gpus: share of a GPU that each worker of the cluster holds; by default they use processors.
        device: cpu, cuda, or auto.
        batch: frames rendered together.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch. Published
            figures are of reference; the report names others.

    Raises:
        ConfigError: a number is out of range.  PolicyError: images are to be saved, and the policy requires marks.
    """

    save: Path | None = None
    workers: int = 0
    ray: str | None = None
    ray_gpus: float = 0.0
    device: str = "auto"
    batch: int = 4
    engine: EngineName = "reference"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0:
            raise ConfigError("the batch must be at least 1, and the number of workers at least 0")
        if self.workers and self.ray:
            raise ConfigError("--workers and --ray both say who works; leave one of them out")
        if self.ray_gpus and not self.ray:
            raise ConfigError("--ray-gpus is for the workers of a cluster; add --ray")
        if self.save is not None:
            from export3d.provenance.writing import check_unmarked

            check_unmarked("predictions")  # before clips are prepared, which takes minutes

    @property
    def crew(self) -> Workers:
        """Who scores."""
        return self.workers if self.ray is None else Cluster(self.ray, self.ray_gpus)

    @property
    def device_of_crew(self) -> str:
        """Name of the device that all use: workers of a cluster have no other GPU than their share."""
        return "cpu" if self.device == "auto" and self.ray is not None and not self.ray_gpus else self.device
