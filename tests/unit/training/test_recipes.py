"""Settings from a recipe, a TOML file and single changes: order, types, sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export3d.cli.main import main
from export3d.errors import Export3DError
from export3d.training.adversarial import AdversarialConfig
from export3d.training.pretrain import PretrainConfig
from export3d.training.recipes import KEYS, RECIPES, STAGES, parse, resolve
from export3d.training.reconstruction import ReconstructionConfig

Capture = pytest.CaptureFixture[str]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- order --------------------------------------------------------------------------------------------------------


def test_a_file_overrides_the_recipe_and_a_change_overrides_both(tmp_path: Path) -> None:
    mine = written(tmp_path, "[train.loss]\nlpips = 3\nl2 = 4\n[train.loop]\nlr = 1e-3\n[refine.loss]\nl2 = 9\n")
    found = resolve(ReconstructionConfig, "base", mine, ["loss.l2=5", "loop.batch_size=4", "loss.l2=6"])
    assert (found.config.weights.lpips, found.config.weights.l2) == (3.0, 6.0), "the last change of a key counts"
    assert (found.loop.lr, found.loop.batch_size) == (1e-3, 4)
    assert found.config.weights.lpips_raw == 0.0, "the recipe's, untouched"
    assert type(found.config.weights.lpips) is float


def test_what_goes_instead_of_the_recipes_is_overridden_by_a_change() -> None:
    given: dict[str, Any] = {"instead": {"model.variants": ()}}
    assert resolve(ReconstructionConfig, "base", **given).config.variants == ()
    assert resolve(ReconstructionConfig, "base", changes=["model.variants=no_lowpass"], **given).config.variants == (
        "no_lowpass",
    )


def test_a_change_can_name_its_stage_and_the_others_leave_it_out() -> None:
    changes = ["train.loss.lpips=3", "refine.loss.lpips=2", "loop.seed=7", "pretrain.data.frames=5"]
    one, two = (resolve(stage, "paper", changes=changes) for stage in (ReconstructionConfig, AdversarialConfig))
    assert (one.config.weights.lpips, two.config.weights.lpips) == (3.0, 2.0)
    assert (one.loop.seed, two.loop.seed) == (7, 7)
    assert resolve(PretrainConfig, "paper", changes=changes).config.frames.frames == 5


@pytest.mark.parametrize(
    ("recipe", "changes", "wanted"),
    [
        ("fine-tune", [], (800, None, "images")),
        ("fine-tune", ["loop.max_minutes=2"], (None, 2.0, "clock")),
        ("fine-tune", ["loop.max_minutes=2", "loop.max_images=9"], (9, 2.0, "images")),
        ("fine-tune", ["loop.max_minutes=2", "loop.decay=none"], (None, 2.0, "none")),
        ("paper", ["loop.max_minutes=2"], (None, 2.0, "none")),
        ("base", ["loop.max_images=2"], (2, None, "none")),
        ("fine-tune", ["loop.max_images=none", "loop.decay=none"], (None, None, "none")),
        ("fine-tune", ["loop.max_minutes=none"], (800, None, "images")),
    ],
)
def test_the_end_that_is_given_takes_the_place_of_the_recipes(
    recipe: str, changes: list[str], wanted: tuple[Any, ...]
) -> None:
    loop = resolve(ReconstructionConfig, recipe, changes=changes).loop
    assert (loop.max_images, loop.max_minutes, loop.decay) == wanted


def test_an_end_in_clips_takes_the_place_of_the_clock() -> None:
    loop = resolve(PretrainConfig, "base", changes=["loop.max_images=80"]).loop
    assert (loop.max_images, loop.max_minutes, loop.decay) == (80, None, "images")


# ---- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("loop.max_images=480_000", "loop.max_images", 480_000),
        ("loop.betas=[0, 0.9]", "loop.betas", (0.0, 0.9)),
        ("loop.precision=bf16", "loop.precision", "bf16"),
        ('loop.precision="bf16"', "loop.precision", "bf16"),
        ("loop.cpu=true", "loop.cpu", True),
        ("loop.grad_clip=none", "loop.grad_clip", None),
        ("loop.lr = 2e-4", "loop.lr", 2e-4),
        ("model.preset=none", "model.preset", None),
        ('model.variants=["clebs", "no_lowpass"]', "model.variants", ("clebs", "no_lowpass")),
        ("model.variants=[]", "model.variants", ()),
        ("loss.backbone=none", "loss.backbone", "none"),
        ("loss.backbone_file=a b/c=d.pth", "loss.backbone_file", "a b/c=d.pth"),
    ],
)
def test_values_are_toml_and_bare_words_are_strings(change: str, key: str, value: Any) -> None:
    table, _, name = key.partition(".")
    assert resolve(ReconstructionConfig, "base", changes=[change]).tables()[table][name] == value


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_printed_can_be_read_again(stage: Any, tmp_path: Path) -> None:
    """JSON's null is "none" in TOML."""
    found = resolve(stage, "paper")
    lines = []
    for table, values in json.loads(found.to_json()).items():
        lines.append(f"[{STAGES[stage]}.{table}]")
        lines += [f"{name} = {json.dumps('none' if value is None else value)}" for name, value in values.items()]
    assert len(lines) == len(KEYS[STAGES[stage]]) + len(found.tables())
    assert resolve(stage, "base", written(tmp_path, "\n".join(lines))) == found


# ---- refusals -----------------------------------------------------------------------------------------------------


def refusal(capsys: Capture, *given: object, command: str = "train") -> str:
    assert main([command, *map(str, given), "--print-config"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("export3d: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loss.lpip=2", ["'loss.lpip'", "did you mean loss.lpips"]),
        ("lpips=2", ["'lpips'", "did you mean loss.lpips?"]),
        ("loop.max-minutes=2", ["'loop.max-minutes'", "did you mean loop.max_minutes?"]),
        ("loop=2", ["'loop'", "--print-config"]),
        ("loss.superres=true", ["'loss.superres'"]),
        ("lr", ["--set KEY=VALUE", "'lr'"]),
        ("=2", ["''"]),
        ("loss.lpips=much", ["loss.lpips must be a number", "much"]),
        ("loss.lpips=true", ["loss.lpips must be a number"]),
        ("loss.lpips=", ["loss.lpips must be a number"]),
        ("loop.lr=nan", ["loop.lr must be a number"]),
        ("loop.lr=1" + "0" * 400, ["loop.lr must be a number"]),
        ("loop.lr=" + "9" * 5000, ["loop.lr must be a number"]),
        ("loop.batch_size=99999999999999999999", ["loop.batch_size must be a whole number of at most"]),
        ("loop.batch_size=2000000", ["batch_size 2000000 is more than"]),
        ("loop.seed=-1", ["seed -1"]),
        ("loop.lr=[1", ["loop.lr", "cannot be read as TOML"]),
        ("loop.lr={a=1}", ["loop.lr must be a number"]),
        ("loop.lr=1\nseed=2", ["loop.lr"]),
        ("loop.max_images=1.5", ["loop.max_images must be a whole number or none"]),
        ("loop.cpu=1", ["loop.cpu must be true or false"]),
        ("loop.betas=0.9", ["loop.betas must be a list of 2 numbers"]),
        ("loop.betas=[0.9, true]", ["loop.betas must be a list of 2 numbers"]),
        ("loop.betas=[0.9, 1.5]", ["betas"]),
        ("loop.decay=linear", ["loop.decay must be one of none, images, clock"]),
        ("loop.decay=clock", ["max_minutes"]),
        ("loop.lr=-1", ["lr -1.0"]),
        ("loop.batch_size=0", ["batch_size 0"]),
        ("loop.grad_clip=0", ["grad_clip"]),
        ("model.variants=[1]", ["model.variants must be a list of words"]),
        ("model.variants=clebz", ["'clebz'", "no_lowpass"]),
        ("model.preset=huge", ["'huge'", "paper, base"]),
        ("model.image_size=100", ["image_size 100", "32"]),
        ("model.expression=", ["model.expression must be a path or none"]),
        ("model.motion_steps=-1", ["motion_steps"]),
        ("render.coarse=0", ["coarse"]),
        ("render.fine=-1", ["fine"]),
        ("loss.backbone=vgg", ["'vgg'", "vgg16"]),
        ("loss.identity=-1", ["loss.identity must not be negative"]),
        ("loss.reading=-1", ["loss.reading must not be negative"]),
        ("loss.l2=-1", ["l2 must not be negative"]),
        ("loss.expression=0.1", ["loss.expression needs loss.reader"]),
        ("data.hard_fraction=2", ["hard_fraction is 2.0"]),
        ("data.memory=0", ["memory"]),
        ("refine.loss.lpip=1", ["refine has no setting 'loss.lpip'", "did you mean loss.lpips"]),
        ("pretrain.loop.lr=fast", ["pretrain setting loop.lr must be a number"]),
        ("train=1", ["train has no setting 'train'"]),
    ],
)
def test_a_bad_change_is_one_sentence(change: str, words: list[str], capsys: Capture) -> None:
    err = refusal(capsys, "--set", change)
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("command", "change", "word"),
    [
        ("refine", "discriminator.lr=0", "discriminator.lr"),
        ("refine", "discriminator.r1_every=0", "r1_every"),
        ("refine", "loss.lambda_adv=-1", "lambda_adv"),
        ("refine", "model.trainable=half", "model.trainable must be one of sr, all"),
        ("refine", "model.preset=base", "'model.preset'"),
        ("pretrain", "expression.n=0", "n at most d"),
        ("pretrain", "data.frames=1", "frames 1"),
        ("pretrain", "data.pseudo_share=2", "pseudo_share"),
        ("pretrain", "image.width=7", "width 7"),
        ("pretrain", "expression.frozen=true", "'expression.frozen'"),
        ("ablate", "loss.lpip=1", "did you mean loss.lpips"),
    ],
)
def test_bad_changes_of_the_other_stages_too(command: str, change: str, word: str, capsys: Capture) -> None:
    assert word in refusal(capsys, "--set", change, command=command)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[train.loss\n", ["cannot be read as TOML", "line 1"]),
        (b"[train.loss]\nlpips = 1\nlpips = 2\n", ["cannot be read as TOML"]),
        (b"x = " + b"[" * 5000, ["cannot be read as TOML"]),
        (b"\xff\xfe", ["UTF-8"]),
        (b"", ["empty"]),
        (b"# nothing\n", ["sets nothing for train"]),
        (b"[refine.loss]\nl2 = 1\n", ["sets nothing for train"]),
        (b"[trane.loss]\nl2 = 1\n", ["'trane'", "pretrain, train, refine"]),
        (b"train = 1\n", ["train must be a table"]),
        (b"[train.los]\nl2 = 1\n", ["'los'"]),
        (b"[train.los]\n", ["'los'"]),
        (b"[train]\nloss = 1\n", ["'loss'"]),
        (b"[train.loss]\nlpip = 1\n", ["'loss.lpip'", "did you mean loss.lpips"]),
        (b"[train.loss.lpips]\nraw = 1\n", ["loss.lpips must be a number"]),
        (b"[train.loss]\nlpips = 1979-05-27\n", ["loss.lpips must be a number"]),
        (b"[train.loss]\nl2 = 1\n[refine.loop]\nlr = 'fast'\n", ["loop.lr must be a number"]),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(
    content: bytes, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    err = refusal(capsys, "--config", path)
    for word in (str(path), *words):
        assert word in err


def test_a_missing_file_a_folder_and_an_unknown_recipe_are_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    assert "does not exist" in refusal(capsys, "--config", tmp_path / "none.toml")
    assert "is a folder" in refusal(capsys, "--config", tmp_path)
    assert "'bass' (did you mean base?)" in refusal(capsys, "--recipe", "bass")
    assert ", ".join(RECIPES) in refusal(capsys, "--recipe", "../base")


def test_data_and_an_output_are_needed_to_train(tmp_path: Path, capsys: Capture) -> None:
    for command in ("pretrain", "train", "refine", "ablate"):
        for given, word in (([], "DATA is missing"), ([str(tmp_path)], "-o RUN")):
            assert main([command, *given]) == 2
            err = capsys.readouterr().err
            assert word in err
            assert err.count("\n") == 1
    assert main(["refine", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    assert "--from-pretrained" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_text_is_checked_for_all_its_stages() -> None:
    found = parse("[train.loop]\nlr = 1\n[refine.discriminator]\nbetas = [0, 0.5]\n", "a text")
    assert found == {"train": {"loop.lr": 1.0}, "refine": {"discriminator.betas": (0.0, 0.5)}}
    with pytest.raises(Export3DError, match=r"a text: stage refine has no setting 'loop\.l2'"):
        parse("[refine.loop]\nl2 = 1\n", "a text")
    with pytest.raises(Export3DError, match=r"a text sets train\.loop\.lr twice"):
        parse('[train]\n"loop.lr" = 1\n[train.loop]\nlr = 2\n', "a text")


def test_every_field_is_reached_once() -> None:
    for stage, name in STAGES.items():
        assert len(set(KEYS[name].values())) == len(KEYS[name])
        resolve(stage, "base").tables()
    assert resolve(AdversarialConfig, "base").tables()["discriminator"]["betas"] == (0.0, 0.99)
