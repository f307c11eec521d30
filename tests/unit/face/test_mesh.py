"""The canonical mesh inside the landmark model."""

import io
import zipfile

import numpy as np
import pytest

from export3d.camera import UNITS_PER_CM
from export3d.errors import Export3DError
from export3d.face.mesh import canonical_mesh, model_bytes, parse_mesh

FOREHEAD, CHIN, NOSE_TIP, LEFT_EAR, RIGHT_EAR = 10, 152, 4, 454, 234


def test_the_mesh_is_a_face_with_y_up_and_z_toward_the_viewer():
    vertices = canonical_mesh().vertices_cm
    assert vertices.shape == (468, 3)
    assert vertices[FOREHEAD, 1] > vertices[NOSE_TIP, 1] > vertices[CHIN, 1]
    assert vertices[NOSE_TIP, 2] > vertices[:, 2].max() - 0.5
    assert 12.0 < vertices[LEFT_EAR, 0] - vertices[RIGHT_EAR, 0] < 18.0
    assert 15.0 < vertices[FOREHEAD, 1] - vertices[CHIN, 1] < 20.0


def test_the_mesh_is_its_own_mirror_image():
    vertices = canonical_mesh().vertices_cm
    mirrored = vertices * [-1.0, 1.0, 1.0]
    distance = np.linalg.norm(mirrored[:, None] - vertices, axis=-1).min(1)
    assert distance.max() < 0.02


def test_world_points_are_the_mesh_in_scene_units_with_y_and_z_flipped():
    mesh = canonical_mesh()
    np.testing.assert_array_equal(mesh.vertices, mesh.vertices_cm * UNITS_PER_CM * [1.0, -1.0, -1.0])


def test_triangles_and_pose_landmarks_name_vertices_and_weights_sum_to_one():
    mesh = canonical_mesh()
    assert mesh.triangles.shape == (898, 3)
    assert set(mesh.triangles.ravel()) == set(range(468))
    assert len(set(mesh.pose_landmarks.tolist())) == 33
    assert mesh.pose_weights.min() > 0
    assert mesh.pose_weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("keep", [0, 1, 7, 1000, 19000, 19060, 19375])
def test_a_message_that_was_cut_short_is_refused(keep):
    with zipfile.ZipFile(io.BytesIO(model_bytes())) as archive:
        message = archive.read("geometry_pipeline_metadata_landmarks.binarypb")
    with pytest.raises(Export3DError, match="damaged"):
        parse_mesh(message[:keep])


def test_a_message_that_is_something_else_is_refused(rng):
    for _ in range(50):
        with pytest.raises(Export3DError, match="damaged"):
            parse_mesh(rng.bytes(500))
