"""LPIPS: properties on real weights where they lie, parity with a slow twin on random ones, refusals."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from export3d import perceptual as perceptual_module
from export3d.errors import CheckpointError, ConfigError, MissingExtra, ShapeError
from export3d.image import to_tensor
from export3d.perceptual import Perceptual, load_perceptual, read_tensors
from tests import reference
from tests.reference import convolve, max_pool

BACKBONES = ("alex", "squeeze", "vgg16")
Arrays = dict[str, Any]


def random_features(backbone: str) -> dict[str, Tensor]:
    """He-initialised weights of the right shapes, in torchvision's names."""
    layers = perceptual_module._RECIPES[backbone].build()
    for name, value in layers.state_dict().items():
        fan = value[0].numel() if value.ndim > 1 else 1
        value.copy_(torch.randn_like(value) * ((2 / fan) ** 0.5 if value.ndim > 1 else 0.1))
        assert name
    return {f"features.{name}": value for name, value in layers.state_dict().items()}


def random_heads(backbone: str) -> dict[str, Tensor]:
    channels = perceptual_module._RECIPES[backbone].channels
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}


# ---- the slow twin ---------------------------------------------------------------------------------------------------


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def alex_activations(x: np.ndarray, w: Arrays) -> list[np.ndarray]:
    """The five convolutions of AlexNet, each behind its ReLU."""
    first = relu(convolve(x, w["0.weight"], w["0.bias"], stride=4, padding=2))
    second = relu(convolve(max_pool(first, 3, 2), w["3.weight"], w["3.bias"], padding=2))
    third = relu(convolve(max_pool(second, 3, 2), w["6.weight"], w["6.bias"], padding=1))
    fourth = relu(convolve(third, w["8.weight"], w["8.bias"], padding=1))
    fifth = relu(convolve(fourth, w["10.weight"], w["10.bias"], padding=1))
    return [first, second, third, fourth, fifth]


def squeeze_activations(x: np.ndarray, w: Arrays) -> list[np.ndarray]:
    """SqueezeNet 1.1 in the seven slices of LPIPS: each ends before a pool, or behind a fire module at the end."""

    def fire(x: np.ndarray, n: int) -> np.ndarray:
        x = relu(convolve(x, w[f"{n}.squeeze.weight"], w[f"{n}.squeeze.bias"]))
        narrow = convolve(x, w[f"{n}.expand1x1.weight"], w[f"{n}.expand1x1.bias"])
        wide = convolve(x, w[f"{n}.expand3x3.weight"], w[f"{n}.expand3x3.bias"], padding=1)
        return relu(np.concatenate([narrow, wide]))

    found = [relu(convolve(x, w["0.weight"], w["0.bias"], stride=2))]
    found.append(fire(fire(max_pool(found[-1], 3, 2, ceil=True), 3), 4))
    found.append(fire(fire(max_pool(found[-1], 3, 2, ceil=True), 6), 7))
    found.append(fire(max_pool(found[-1], 3, 2, ceil=True), 9))
    for n in (10, 11, 12):
        found.append(fire(found[-1], n))
    return found


def vgg_activations(x: np.ndarray, w: Arrays) -> list[np.ndarray]:
    """The last ReLU before each pool, and the very last."""
    found = []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        if found:
            x = max_pool(x, 2, 2)
        for n in block:
            x = relu(convolve(x, w[f"{n}.weight"], w[f"{n}.bias"], padding=1))
        found.append(x)
    return found


TWINS = {"alex": (alex_activations, 40), "squeeze": (squeeze_activations, 36), "vgg16": (vgg_activations, 16)}


@pytest.mark.parametrize(
    ("backbone", "with_heads"), [("alex", True), ("alex", False), ("squeeze", True), ("vgg16", False)]
)
def test_distances_agree_with_the_slow_twin(backbone: str, with_heads: bool) -> None:
    features = random_features(backbone)
    heads = random_heads(backbone) if with_heads else None
    activations, size = TWINS[backbone]
    x, y = torch.rand(2, 2, 3, size, size) * 2 - 1
    found = Perceptual(backbone, features, heads)(x, y)

    weights = {name.removeprefix("features."): value.double().numpy() for name, value in features.items()}
    channels = perceptual_module._RECIPES[backbone].channels
    if heads is None:
        flat = [np.full(c, 1 / c) for c in channels]
    else:
        flat = [heads[f"lin{i}.model.1.weight"].double().numpy().ravel() for i in range(len(channels))]
    shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
    scale = np.array([0.458, 0.448, 0.450])[:, None, None]
    b = 1
    sides = [activations((image[b].double().numpy() - shift) / scale, weights) for image in (x, y)]
    assert float(found[b]) == pytest.approx(reference.lpips(*sides, flat), rel=1e-4)


# ---- properties ------------------------------------------------------------------------------------------------------


def test_the_distance_is_frozen_and_lets_gradients_through_to_the_image() -> None:
    distance = Perceptual("alex", random_features("alex"))
    assert not distance.training
    assert not any(p.requires_grad for p in distance.parameters())
    x = (torch.rand(1, 3, 40, 40) * 2 - 1).requires_grad_()
    distance(x, torch.rand(1, 3, 40, 40)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_the_distance_is_float32_under_autocast() -> None:
    distance = Perceptual("alex", random_features("alex"))
    x, y = torch.rand(2, 1, 3, 40, 40)
    expected = distance(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(x, y)
        from_half = distance(x.bfloat16(), y.bfloat16())
    assert found.dtype == from_half.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
def test_the_distance_is_the_same_with_and_without_gradients(backbone: str) -> None:
    """Without them pictures are laid out otherwise in memory."""
    distance = Perceptual(backbone, random_features(backbone), random_heads(backbone))
    x, y = torch.rand(2, 3, 3, 64, 48) * 2 - 1
    expected = distance(x, y)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(distance(x, y), expected, rtol=1e-5, atol=1e-6)


def test_activations_of_a_target_serve_for_several_images() -> None:
    distance = Perceptual("alex", random_features("alex"), random_heads("alex"))
    images, target = torch.rand(3, 2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        theirs = distance.activations(target)
        for image in images:
            assert torch.equal(distance.distance(distance.activations(image), theirs), distance(image, target))
    assert all(torch.allclose(a.square().sum(dim=1), torch.ones(()), atol=1e-3) for a in theirs)


def test_responses_are_the_activations_before_they_are_normalised() -> None:
    distance = Perceptual("alex", random_features("alex"))
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    for plain, unit in zip(distance.responses(image), distance.activations(image), strict=True):
        torch.testing.assert_close(unit * plain.norm(dim=1, keepdim=True), plain, rtol=1e-3, atol=1e-4)


def test_identical_black_images_have_a_finite_gradient() -> None:
    distance = Perceptual("alex", random_features("alex"))
    x = torch.full((1, 3, 40, 40), -1.0, requires_grad=True)
    distance(x, torch.full((1, 3, 40, 40), -1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_images_of_different_size_are_refused() -> None:
    distance = Perceptual("alex", random_features("alex"))
    with pytest.raises(ShapeError, match="other image"):
        distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 48))


# ---- real weights ----------------------------------------------------------------------------------------------------


FILES = {
    "alex": ("lpips/alexnet_features_fp16.pth", "lpips/alex.pth"),
    "squeeze": ("lpips/squeezenet1_1_features_fp32.pth", "lpips/squeeze.pth"),
    "vgg16": ("vgg16/vgg16_hed_fp16.safetensors", None),
}


@pytest.fixture(scope="module", params=BACKBONES)
def real(request: pytest.FixtureRequest, shared_models: Path) -> Perceptual:
    features, heads = FILES[request.param]
    return load_perceptual(request.param, shared_models / features, shared_models / heads if heads else None)


def portrait(astronaut: np.ndarray, size: int = 64) -> Tensor:
    image = to_tensor(astronaut)[None]
    return torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)


def test_with_real_weights_an_image_is_no_distance_from_itself(real: Perceptual, astronaut: np.ndarray) -> None:
    image = portrait(astronaut)
    assert float(real(image, image)) == 0.0


def test_with_real_weights_the_distance_is_symmetric_and_positive(real: Perceptual, astronaut: np.ndarray) -> None:
    image = portrait(astronaut)
    noisy = (image + 0.1 * torch.randn_like(image)).clamp(-1, 1)
    there, back = float(real(image, noisy)), float(real(noisy, image))
    assert there > 0
    assert there == pytest.approx(back, rel=1e-5)


def test_with_real_weights_worse_images_are_farther(real: Perceptual, astronaut: np.ndarray) -> None:
    image = portrait(astronaut)
    blurred = [
        torch.nn.functional.interpolate(
            torch.nn.functional.interpolate(image, (n, n), mode="bilinear", antialias=True), (64, 64), mode="bilinear"
        )
        for n in (48, 24, 12)
    ]
    distances = [float(real(image, other)) for other in blurred]
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[-1]


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
def test_published_heads_are_never_negative(backbone: str, shared_models: Path) -> None:
    heads = read_tensors(shared_models / str(FILES[backbone][1]))
    assert all(value.min() >= 0 for value in heads.values())


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    for build in (lambda: Perceptual("resnet", {}), lambda: load_perceptual("resnet")):
        with pytest.raises(ConfigError, match=r"resnet.*alex, squeeze, vgg16"):
            build()


def test_weights_of_another_backbone_are_refused() -> None:
    with pytest.raises(CheckpointError, match="alex"):
        Perceptual("alex", random_features("squeeze"))


def test_heads_of_another_backbone_are_refused() -> None:
    with pytest.raises(CheckpointError, match="heads of alex"):
        Perceptual("alex", random_features("alex"), random_heads("squeeze"))


def test_a_missing_tensor_is_named() -> None:
    features = random_features("alex")
    del features["features.8.bias"]
    with pytest.raises(CheckpointError, match=r"8\.bias"):
        Perceptual("alex", features)


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", ["missing", "folder", "empty", "text", "truncated", "hostile", "a list"])
def test_a_file_that_is_no_weights_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path, victim = tmp_path / name, tmp_path / "executed"
    if content == "folder":
        path.mkdir()
    elif content == "empty":
        path.touch()
    elif content == "text":
        path.write_text("these are not the weights")
    elif content == "hostile":
        torch.save({"features.0.weight": Hostile(victim)}, path)
    elif content == "a list":
        torch.save([torch.zeros(2)], path)
    elif content == "truncated":
        if name.endswith(".pth"):
            torch.save(random_features("alex"), path)
        else:
            save_file(random_features("alex"), path)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="weights"):
        load_perceptual("alex", path)
    assert not victim.exists()


def test_tensors_are_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    features = random_features("alex")
    torch.save(features, tmp_path / "a.pth")
    save_file(features, tmp_path / "a.safetensors")
    assert zipfile.is_zipfile(tmp_path / "a.pth")
    for name in ("a.pth", "a.safetensors"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == features.keys()
        assert all(torch.equal(found[key], features[key]) for key in features)


def test_half_precision_weights_without_the_prefix_are_welcome() -> None:
    features = random_features("alex")
    short = {name.removeprefix("features."): value.half() for name, value in features.items()}
    x, y = torch.rand(2, 1, 3, 40, 40)
    found = Perceptual("alex", short)(x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Perceptual("alex", features)(x, y), rtol=0.02, atol=1e-3)


def test_without_a_file_and_without_torchvision_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match="torchvision"):
        load_perceptual("alex")


def test_the_activations_of_a_kept_image_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Perceptual("alex", random_features("alex"))
    a, b, target, other = torch.rand(4, 2, 3, 64, 64)
    wanted = [network(a, target), network(b, target), network(b, other)]
    count, activations = [], network.activations
    monkeypatch.setattr(network, "activations", lambda image: count.append(1) or activations(image))
    kept: dict[str, Any] = {}
    found = [network(a, target, kept), network(b, target, kept), network(b, other, kept)]
    assert len(count) == 5
    assert all(map(torch.equal, found, wanted))


def test_a_kept_image_does_not_change_gradients() -> None:
    network = Perceptual("alex", random_features("alex"))
    target, gradients = torch.rand(2, 3, 64, 64), []
    for kept in ({}, None):
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        (network(image, target, kept) + network(2 * image, target, kept)).sum().backward()
        gradients.append(image.grad)
    assert torch.equal(*gradients)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at
def test_the_network_compiles_whole() -> None:
    network = Perceptual("squeeze", random_features("squeeze"))
    image, target = torch.rand(2, 1, 3, 64, 64)
    image.requires_grad_(True)
    wanted = network(image, target)
    network.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(network(image, target), wanted)
