"""Dockerfile and .dockerignore: what a container of the studio promises."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

from export3d.cli import studio

ROOT = Path(__file__).parents[2]
STEPS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]


def steps(kind: str) -> list[str]:
    """What follows an instruction, in order."""
    return [rest for name, rest in STEPS if name == kind]


def test_both_stages_begin_with_the_same_exact_python() -> None:
    bases = [rest.split()[0] for rest in steps("FROM")]
    assert len(bases) == 2
    assert len(set(bases)) == 1, "the environment is copied: it needs the same Python"
    assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-\w+", bases[0]), "one version, that the package supports"


def test_it_runs_as_nobody_in_particular_and_is_watched() -> None:
    last = [name for name, _ in STEPS]
    user = steps("USER")[-1]
    assert user.isdecimal(), "a number, so that --user and Kubernetes' runAsNonRoot can check it"
    assert int(user) > 1000
    assert not {"RUN", "COPY", "ADD", "FROM"} & set(last[last.index("USER") :]), "nothing is made after it"
    assert f"useradd --uid {user} " in " ".join(steps("RUN"))
    port = inspect.signature(studio.command).parameters["port"].default
    assert steps("EXPOSE") == [str(port)]
    assert f"http://127.0.0.1:{port}/health" in steps("HEALTHCHECK")[0]


def test_its_command_is_one_of_ours() -> None:
    words = json.loads(steps("CMD")[0])
    assert words[:2] == ["export3d", "studio"]
    options = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert options == {"share_on", "no_browser"} <= set(inspect.signature(studio.command).parameters)
    assert words[words.index("--share-on") + 1] == "0.0.0.0", "other addresses of a container nobody reaches"


def test_it_installs_pinned_packages_without_cuda() -> None:
    installs = [part for run in steps("RUN") for part in run.split("&&") if "pip install" in part]
    assert [("-c constraints.txt" in part, "--no-cache-dir" in part) for part in installs] == [(True, True)] * 2
    assert re.search(r"--extra-index-url https://download\.pytorch\.org/whl/cpu\s+torch$", installs[0].strip())
    assert '".[$EXTRAS]"' in installs[1]
    extras = set(dict(step.split("=") for step in steps("ARG"))["EXTRAS"].split(","))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"studio"} <= extras <= set(known)
    for library in re.findall(r"\blib\w+", " ".join(steps("RUN"))):
        assert library in (ROOT / "README.md").read_text(), "what users are told to install"


def test_it_is_built_of_what_the_package_needs_and_of_nothing_else() -> None:
    ignored, *wanted = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    taken = {line[1:] for line in wanted if line.startswith("!")}
    copied = {name for rest in steps("COPY") if "--from" not in rest for name in rest.split()[:-1]}
    assert copied == taken
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied
    assert any(fnmatch("src/export3d/__pycache__", line.replace("**", "*")) for line in wanted)


def test_nodes_of_a_cluster_have_the_tested_ray_and_the_image_s_user() -> None:
    """examples/kuberay.yaml."""
    cluster = yaml.safe_load((ROOT / "examples" / "kuberay.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["spec"]["rayVersion"] == pinned[1]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert {pod["securityContext"]["runAsUser"] for pod in pods} == {int(steps("USER")[-1])}
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert len(images) == 1, "every node has export3d in the same version"
    assert (
        f"docker build --build-arg EXTRAS=studio,fast,cluster,remote -t {images.pop()} ."
        in (ROOT / "docs" / "cluster.md").read_text()
    )
