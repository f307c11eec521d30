"""The paper's tables."""

from __future__ import annotations

from export3d.evaluation.reports import paper_tables


def test_the_papers_tables_agree_with_each_other() -> None:
    vfhq, _, ablation = paper_tables.TABLES
    assert vfhq.rows["Export3D (paper)"] == ablation.rows["Full (CLeBS)"]
    assert vfhq.best() == (23.555, 0.750, 3.453, 0.867, 0.082, 0.030, 0.707, 0.208, 0.065)
    assert paper_tables.TABLES[1].best() == (23.239, 0.797, 3.581, 0.843, 0.092, 0.029, 0.772, 0.201, 0.076)
