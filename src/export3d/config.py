"""The model's configuration: one dataclass composed of those of the parts, named presets and variants, and JSON.

`paper` has the paper's sizes where the paper states them; `base` ships; `core` is `base` without what it takes from the
source's pixels; `tiny` is for tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from export3d.errors import ConfigError
from export3d.expression.encoder import ExpressionConfig
from export3d.motion.motion import SPACES
from export3d.render.renderer import RenderConfig
from export3d.superres import SuperResConfig
from export3d.triplane.generator import GeneratorConfig
from export3d.warping.source_warp import WarpConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to rebuild the model around its weights.

    Attributes:
        space: expression space of the coefficients, a key of `export3d.motion.motion.SPACES`.
        expression, generator, render, superres: the paper's parts.
        warp: the additions to the paper; None: the paper's model.
    """

    space: str = "arkit52"
    expression: ExpressionConfig = field(default_factory=ExpressionConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    render: RenderConfig = field(default_factory=RenderConfig)
    superres: SuperResConfig = field(default_factory=SuperResConfig)
    warp: WarpConfig | None = None

    def __post_init__(self) -> None:
        if SPACES.get(self.space) != self.expression.inputs:
            raise ConfigError(
                f"expression space {self.space!r} does not have {self.expression.inputs} coefficients; "
                f"known spaces: {', '.join(f'{name} ({size})' for name, size in SPACES.items())}"
            )
        if self.generator.image_size > self.image_size:
            raise ConfigError(
                f"image_size {self.generator.image_size} must not exceed four times the raw resolution "
                f"{self.render.resolution}"
            )

    @property
    def image_size(self) -> int:
        """H = W of source and driving frame, pixels; the generator may get the source at a smaller size."""
        return 4 * self.render.resolution

    def sized(self, size: int) -> ModelConfig:
        """This configuration for images of `size` pixels; a generator with a smaller input keeps its input size.

        Raises:
            ConfigError: `size` is not a multiple of 32.
        """
        if size % 32:
            raise ConfigError(f"image_size {size} must be a multiple of 32")
        own = self.generator.image_size
        seen = size if own == self.image_size else min(size, own)
        return replace(
            self,
            generator=replace(self.generator, image_size=seen),
            render=replace(self.render, resolution=size // 4),
        )

    def in_space(self, space: str) -> ModelConfig:
        """This configuration for expressions of another space; `ConfigError` if there is no such space."""
        inputs = SPACES.get(space, self.expression.inputs)
        return replace(self, space=space, expression=replace(self.expression, inputs=inputs))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionaries."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; raises `ConfigError` for an unknown setting or one of the wrong type."""
        parts = {
            "expression": ExpressionConfig,
            "generator": GeneratorConfig,
            "render": RenderConfig,
            "superres": SuperResConfig,
            "warp": WarpConfig,
        }
        built: dict[str, Any] = {}
        for name, value in values.items():
            if name == "space":
                _check_types("", {"space": value}, cls())
                built[name] = value
                continue
            if name == "warp" and value is None:
                continue
            if name not in parts:
                raise ConfigError(f"unknown model setting {name!r}; known: space, {', '.join(parts)}")
            if not isinstance(value, dict):
                what = "a table of settings, or null for none" if name == "warp" else "a table of settings"
                raise ConfigError(f"model setting {name!r} must be {what}, got {value!r}")
            known = {f.name for f in fields(parts[name])}
            unknown = sorted(set(value) - known)
            if unknown:
                raise ConfigError(f"unknown setting {name}.{unknown[0]}; these weights need a newer export3d")
            _check_types(f"{name}.", value, parts[name]())
            built[name] = parts[name](**value)
        return cls(**built)

    def to_json(self) -> str:
        """Readable JSON."""
        return json.dumps(self.to_dict(), indent=2)


def paper() -> ModelConfig:
    """The paper's model: h = 1024, four heads, planes 3 x 32 x 128 x 128, 64 rays per side, 256 px, frozen CLeBS."""
    return clebs(ModelConfig())


def base() -> ModelConfig:
    """The model that ships: a smaller generator, fewer samples per ray, a narrower super-resolution, and the warp.

    The generator gets the source at 128 pixels; the warp takes finer detail from the source itself.
    """
    return ModelConfig(
        generator=GeneratorConfig(
            image_size=128,
            dim=384,
            conditioned_blocks=4,
            plain_dim=192,
            mid_channels=192,
            high_channels=48,
        ),
        render=RenderConfig(coarse=16, fine=16, half_extent=0.36),
        superres=SuperResConfig(mid_channels=32, high_channels=16),
        warp=WarpConfig(
            irises=True,
            lids=True,
            glasses=True,
            teeth=True,
            inside=True,
            turns=True,
            shoulders=True,
            matte=True,
            scores=True,
        ),
    )


def core() -> ModelConfig:
    """`base` without the parts that move the source (variant `pure`).

    EAdaLN alone changes the expression, the renderer alone the pose. The aligned input view and the stem's features
    beside the tokens remain. The super-resolution is wider than that of `base`, since it alone makes the image.
    """
    config = variant(base(), "pure")
    superres = SuperResConfig(mid_channels=64, high_channels=32)
    return replace(config, render=replace(config.render, fine=0), superres=superres)


def tiny() -> ModelConfig:
    """For tests: 64-pixel images in well under a second on a CPU."""
    return ModelConfig(
        expression=ExpressionConfig(hidden=32, n=10, d=32),
        generator=GeneratorConfig(
            image_size=64,
            dim=64,
            conditioned_blocks=2,
            plain_dim=64,
            mid_channels=32,
            high_channels=16,
            plane_channels=8,
        ),
        render=RenderConfig(resolution=16, coarse=8, fine=8, hidden=16, features=8),
        superres=SuperResConfig(mid_channels=16, high_channels=8),
    )


PRESETS = {"paper": paper, "base": base, "core": core, "tiny": tiny}


def preset(name: str) -> ModelConfig:
    """The preset `name`; raises `ConfigError` if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def direct_3dmm(config: ModelConfig) -> ModelConfig:
    """Table 3: two fully connected layers instead of LeBS, trained with the generator."""
    return replace(config, expression=replace(config.expression, basis=False, frozen=False))


def e2e_lebs(n: int) -> Callable[[ModelConfig], ModelConfig]:
    """Table 3: LeBS with n basis vectors, trained with the generator instead of pre-trained."""

    def change(config: ModelConfig) -> ModelConfig:
        return replace(config, expression=replace(config.expression, n=n, basis=True, frozen=False))

    return change


def clebs(config: ModelConfig) -> ModelConfig:
    """Table 3, the paper's full model: LeBS pre-trained by `export3d pretrain` and frozen."""
    return replace(config, expression=replace(config.expression, basis=True, frozen=True))


def no_lowpass(config: ModelConfig) -> ModelConfig:
    """Ablation: pixel shuffle without the Gaussian low-pass."""
    return replace(config, generator=replace(config.generator, lowpass_sigma=0.0))


def having(part: str) -> Callable[[ModelConfig], ModelConfig]:
    """A part of the warp switched on, where there is a warp."""

    def change(config: ModelConfig) -> ModelConfig:
        return config if config.warp is None else replace(config, warp=replace(config.warp, **{part: True}))

    return change


def without(*parts: str) -> Callable[[ModelConfig], ModelConfig]:
    """Ablation of the warp: switches these parts off; the warp is None once no part is left."""

    def change(config: ModelConfig) -> ModelConfig:
        if config.warp is None:
            return config
        left = {name: on and name not in parts for name, on in asdict(config.warp).items()}
        left["scores"] &= left["flow"] or left["detail"]
        return replace(config, warp=WarpConfig(**left) if any(left.values()) else None)

    return change


def _check_types(prefix: str, values: dict[str, Any], default: Any) -> None:
    for name, value in values.items():
        wanted = type(getattr(default, name))
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ConfigError(f"{prefix}{name} must be of type {wanted.__name__}, got {value!r}")


_OF_DETAIL = (
    "detail", "dense", "mouth", "irises", "lids", "glasses", "teeth", "inside", "turns", "shoulders", "matte",
)  # fmt: skip
"""What a warp that adds the source's pixels may have."""
VARIANTS: dict[str, Callable[[ModelConfig], ModelConfig]] = {
    "direct_3dmm": direct_3dmm,
    "e2e_lebs_n25": e2e_lebs(25),
    "e2e_lebs_n10": e2e_lebs(10),
    "e2e_lebs_n5": e2e_lebs(5),
    "clebs": clebs,
    "no_lowpass": no_lowpass,
    "no_skip": without("skip", "flow", "redraw"),
    "no_flow": without("flow", "redraw"),
    "no_redraw": without("redraw"),
    "no_detail": without(*_OF_DETAIL),
    "no_dense": without("dense"),
    "no_mouth": without("mouth", "teeth", "inside"),
    "irises": having("irises"),
    "no_irises": without("irises"),
    "lids": having("lids"),
    "no_lids": without("lids"),
    "glasses": having("glasses"),
    "no_glasses": without("glasses"),
    "teeth": having("teeth"),
    "no_teeth": without("teeth", "inside"),
    "inside": having("inside"),
    "no_inside": without("inside"),
    "turns": having("turns"),
    "no_turns": without("turns"),
    "shoulders": having("shoulders"),
    "no_shoulders": without("shoulders"),
    "matte": having("matte"),
    "no_matte": without("shoulders", "matte"),
    "scores": having("scores"),
    "no_scores": without("scores"),
    "no_align": without("align"),
    "pure": without("flow", "redraw", *_OF_DETAIL),
    "no_warp": without("align", "skip", "flow", "redraw", *_OF_DETAIL),
}
"""Changes by name: the five rows of Table 3, the low-pass filter, and the parts of the warp."""


def variant(config: ModelConfig, name: str) -> ModelConfig:
    """`config` with the change `name`; raises `ConfigError` if there is none."""
    if name not in VARIANTS:
        raise ConfigError(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}")
    return VARIANTS[name](config)
