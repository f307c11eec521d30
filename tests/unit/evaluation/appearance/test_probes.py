"""How much appearance is left in expressions: each figure on made-up faces whose answer is known, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.cli.main import main
from export3d.data.shards import Record, update
from export3d.errors import InputError, ShapeError
from export3d.evaluation.appearance import probes as evaluation
from export3d.evaluation.appearance.probes import (
    baselines,
    coefficients_of,
    effective_rank,
    halves,
    held_expression,
    read_pairs,
    retrieval_accuracy,
    spread_frames,
)
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder

LONDON = Path(__file__).parents[4] / "benchmarks" / "london_pairs.csv"


# --- frames and retrieval ---------------------------------------------------------------------------------------------


def test_spread_frames_are_distinct_usable_even_and_keep_both_ends() -> None:
    usable = np.ones(200, bool)
    usable[[0, 7, 8, 199]] = False
    rows = spread_frames(usable, 33)
    assert len(set(rows.tolist())) == 33
    assert usable[rows].all()
    assert (rows[0], rows[-1]) == (1, 198)
    assert set(np.diff(rows).tolist()) <= {6, 7, 8}
    assert spread_frames(np.ones(33, bool)).tolist() == list(range(33))


def test_a_clip_with_too_few_usable_frames_cannot_be_spread() -> None:
    with pytest.raises(InputError, match="32 usable frames"):
        spread_frames(np.ones(32, bool), 33)


def test_retrieval_of_perfect_embeddings_is_certain_whatever_their_lengths(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.normal(size=(33, 16)))
    lengths = torch.from_numpy(rng.uniform(0.1, 9.0, size=(33, 1)))
    assert retrieval_accuracy(images, images * lengths, 1) == 1.0


def test_retrieval_of_unrelated_embeddings_is_chance_and_of_collapsed_ones_is_zero(rng: np.random.Generator) -> None:
    images, expressions = (torch.from_numpy(rng.normal(size=(1000, 64))) for _ in range(2))
    assert retrieval_accuracy(images, expressions, 150) == pytest.approx(0.15, abs=0.04)
    assert retrieval_accuracy(images, expressions[:1].repeat(1000, 1), 150) == 0.0
    assert retrieval_accuracy(images, images.flip(0), 1000) == 1.0
    assert retrieval_accuracy(images, images * torch.nan, 150) == 0.0


def test_retrieval_agrees_with_a_search_one_by_one(rng: np.random.Generator) -> None:
    images, expressions = rng.normal(size=(2, 20, 4))
    expressions += images
    hits = 0
    for i, image in enumerate(images):
        cosines = [image @ e / np.linalg.norm(image) / np.linalg.norm(e) for e in expressions]
        hits += i in np.argsort(cosines)[::-1][:3]
    assert 0 < hits < 20
    assert retrieval_accuracy(torch.from_numpy(images), torch.from_numpy(expressions), 3) == pytest.approx(hits / 20)


def test_retrieval_wants_an_expression_for_every_image() -> None:
    with pytest.raises(ShapeError):
        retrieval_accuracy(torch.zeros(5, 4), torch.zeros(4, 4))


# --- held expression --------------------------------------------------------------------------------------------------


def test_held_expression_is_the_spread_over_the_way(rng: np.random.Generator) -> None:
    neutral = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert held_expression(neutral, neutral + np.array([5.0, 0.0])) == pytest.approx(np.sqrt(2.5) / 5.0)
    neutral, smiling = rng.normal(size=(2, 40, 7))
    spread = np.sqrt(((neutral - neutral.mean(0)) ** 2).sum(-1).mean())
    way = np.linalg.norm(smiling.mean(0) - neutral.mean(0))
    assert held_expression(neutral, smiling) == pytest.approx(spread / way)


def test_held_expression_ignores_shift_turn_and_scale(rng: np.random.Generator) -> None:
    neutral, smiling = rng.normal(size=(2, 12, 5))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    moved = [7.0 * x @ turn + 100.0 for x in (neutral, smiling)]
    assert held_expression(*moved) == pytest.approx(held_expression(neutral, smiling))


def test_of_an_encoder_and_of_its_embedding_the_held_expression_is_the_same(rng: np.random.Generator) -> None:
    encoder = ExpressionEncoder(ExpressionConfig())
    beta = rng.random((2, 30, 52), dtype=np.float32)
    with torch.no_grad():
        embedded = [encoder(torch.from_numpy(x)).double().numpy() for x in beta]
    coefficients = [coefficients_of(encoder)(x) for x in beta]
    assert held_expression(*coefficients) == pytest.approx(held_expression(*embedded), rel=1e-4)


def test_held_expression_is_zero_without_appearance_and_undefined_without_expression(rng: np.random.Generator) -> None:
    same = np.tile(rng.normal(size=5), (8, 1))
    assert held_expression(same, same + 1.0) == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(held_expression(same, same))


def test_the_london_pairs_are_94_of_distinct_records() -> None:
    pairs = read_pairs(LONDON)
    assert len(pairs) == 94
    assert len({key for pair in pairs for key in pair}) == 188


def test_a_csv_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("person,neutral\na,b\n")
    with pytest.raises(InputError, match="person, neutral, smiling"):
        read_pairs(tmp_path / "pairs.csv")


# --- rank, halves, baselines ------------------------------------------------------------------------------------------


def test_effective_rank_counts_the_dimensions_that_are_used(rng: np.random.Generator) -> None:
    assert effective_rank(rng.normal(size=(20_000, 6))) == pytest.approx(6.0, abs=0.01)
    assert effective_rank(rng.normal(size=(500, 1)) * rng.normal(size=8)) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(np.ones((10, 4))) == 0.0
    assert effective_rank(rng.normal(size=(10, 1))) == pytest.approx(1.0)


@pytest.mark.parametrize("frames", [73, 74, 200])
def test_the_halves_of_a_clip_keep_a_second_apart(frames: int) -> None:
    found = np.ones(frames, bool)
    found[3] = False
    first, second = halves(found)
    assert first[0] == 0
    assert 3 not in first
    assert second[-1] == frames - 1
    assert second[0] - first[-1] in (26, 27)
    assert abs((first[-1] + 1) - (frames - second[0])) <= 1


def test_baselines_are_standardised_by_the_training_data_alone(rng: np.random.Generator) -> None:
    beta = rng.random((400, 52), dtype=np.float32) * np.linspace(0.0, 1.0, 52, dtype=np.float32)
    rows = {row.name: row.encoders for row in baselines(beta)}
    scored = rows["z-scored beta"][0](beta)
    np.testing.assert_allclose(scored[:, 10:].std(0), 1.0, rtol=1e-4)
    assert np.abs(scored[:, 0]).max() == 0.0
    assert rows["PCA-10 of raw beta"][0](beta).shape == (400, 10)
    covariance = np.cov(rows["PCA-10 of z-scored beta"][0](beta), rowvar=False)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-6)
    seeds = [encode(beta) for encode in rows["untrained LeBS"]]
    assert len(seeds) == 5
    assert not np.allclose(seeds[0], seeds[1])


def test_the_untrained_encoders_are_the_same_every_time_and_leave_the_generator_alone(rng: np.random.Generator) -> None:
    beta = rng.random((50, 52), dtype=np.float32)
    state = torch.random.get_rng_state()
    one, two = (baselines(beta)[-1].encoders[3](beta) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), state)


# --- the probes and the whole -----------------------------------------------------------------------------------------


def test_probes_name_people_who_look_different_and_guess_otherwise(rng: np.random.Generator) -> None:
    pytest.importorskip("sklearn")
    who = np.repeat(np.arange(8), 50)
    noise = rng.normal(size=(2, 400, 6))
    looks = 10.0 * rng.normal(size=(8, 6))[who]
    for accuracy in evaluation.probe(noise[0] + looks, who, noise[1] + looks, who):
        assert accuracy.shape == (8,)
        assert accuracy.mean() > 0.95
    for accuracy in evaluation.probe(noise[0], who, noise[1], who):
        assert accuracy.mean() == pytest.approx(1 / 8, abs=0.06)


def test_a_collapsed_encoder_names_nobody() -> None:
    pytest.importorskip("sklearn")
    who = np.repeat(np.arange(4), 10)
    for accuracy in evaluation.probe(np.ones((40, 3)), who, np.ones((40, 3)), who):
        assert accuracy.mean() == pytest.approx(0.25)


Make = Callable[..., Record]


@pytest.fixture
def prepared(tmp_path: Path, make_clip: Make) -> Path:
    """Six people in train and three in val, 60 frames each; their looks outweigh their expressions."""
    rng = np.random.default_rng(5)
    template = make_clip("template", yaws=(0.0,) * 60, step=0)

    def clip(key: str, split: str) -> Record:
        look, gestures = rng.random(52), 0.2 * rng.random((60, 52))
        info = {**template.info, "person": f"person-{key}", "fingerprint": key}
        arrays = (template.camera, template.landmarks, template.found)
        return Record(key, template.media, "mp4", (look + gestures).astype(np.float32), *arrays, info)

    for split, count in (("train", 6), ("val", 3)):
        update(tmp_path / "data" / split, [clip(f"{split}{number}", split) for number in range(count)])
    return tmp_path / "data"


def test_the_command_writes_the_same_table_and_figure_twice(
    prepared: Path, tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("person,neutral,smiling\na,val0,val1\nb,train0,train1\nc,val2,train2\n")
    command = ["evaluate-expression", str(prepared), "--encoder", str(tiny_weights), "--pairs", str(pairs)]
    assert main([*command, "-o", str(tmp_path / "one")]) == 0
    assert "| untrained LeBS |" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "two")]) == 0
    for name in ("expression.json", "expression.md", "tsne.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    value = json.loads((tmp_path / "one" / "expression.json").read_text())
    assert list(value["rows"])[-1] == "tiny"
    assert value["settings"]["probed_people"] == 3
    assert value["settings"]["people_neutral_and_smiling"] == 3
    for row in value["rows"].values():
        assert row["linear"]["low"] <= row["linear"]["value"] <= row["linear"]["high"]
        assert row["held"]["value"] > 0.0
        assert "held_val" not in row
    assert value["rows"]["raw beta"]["linear"]["value"] == 1.0
    assert value["rows"]["untrained LeBS"]["linear"]["deviation"] is not None
    assert value["rows"]["tiny"]["linear"]["deviation"] is None


def test_people_of_both_splits_can_be_asked_about_and_are_not_fitted_on(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    people = ["person-train1", "person-train4", "person-val0"]
    report = evaluation.evaluate_expression(prepared, tmp_path / "out", people=people)
    assert report.settings["probed_people"] == 3
    assert "of 4 training videos" in report.settings["baselines_fitted_on"]
    assert "held" not in report.rows["raw beta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--people", "nobody", "person-val0"], "no clip shows nobody"),
        (["--people", "person-val0"], "at least two people"),
        (["--encoder", "absent.safetensors"], "absent.safetensors"),
        (["--pairs", "absent.csv"], "absent.csv"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    prepared: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate-expression", str(prepared), "-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_portraits_that_are_not_there_are_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lack 188"):
        evaluation.evaluate_expression(prepared, tmp_path / "out", pairs=LONDON)
