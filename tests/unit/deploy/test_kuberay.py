"""The Kubernetes manifests: valid for KubeRay's own schemas, safe, and of one mind with the project."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.config.load import load_config
from orchestrator.config.run import RunConfig
from tests.unit.deploy.manifests import PROJECT, parse_command, pinned, read_documents

CLUSTER = read_documents("raycluster.yaml")["RayCluster/raymix"]
JOB_FILE = read_documents("rayjob.yaml")
JOB = JOB_FILE["RayJob/raymix"]
BUDGETS = read_documents("poddisruptionbudget.yaml")
CLAIM = read_documents("storage.yaml")["PersistentVolumeClaim/raymix-shared"]


def strict(schema: Any) -> Any:
    """The schema as an API server applies it with strict field validation: no key that it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize(("document", "name"), [(CLUSTER, "rayclusters"), (JOB, "rayjobs")])
def test_kuberays_schema(shared_material: Path, document: dict[str, Any], name: str) -> None:
    with gzip.open(shared_material / "schemas" / f"ray.io_{name}.v1.json.gz") as file:
        schema = strict(json.load(file))
    assert document["apiVersion"] == "ray.io/v1"
    validator = jsonschema.Draft202012Validator(schema)
    faults = [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]
    assert faults == []


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    for what, spec in (("cluster", CLUSTER["spec"]), ("job", JOB["spec"]["rayClusterSpec"])):
        yield f"{what} head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{what} {group['groupName']}", group["template"]
    yield "submitter", JOB["spec"]["submitterPodTemplate"]


PODS = [pytest.param(template["spec"], id=what) for what, template in pod_templates()]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_passes_the_restricted_security_standard(pod: dict[str, Any]) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("pod", PODS)
def test_a_container_asks_for_what_it_may_use(pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert set(requests) >= {"cpu", "memory"}
        assert requests["memory"] == limits["memory"]
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


@pytest.mark.parametrize("spec", [CLUSTER["spec"], JOB["spec"]["rayClusterSpec"]])
def test_ray_asks_for_a_token_and_tells_its_health(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == pinned("ray")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert not {variable["name"] for variable in container["env"]} & {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE"}
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}


@pytest.mark.parametrize("pod", PODS)
def test_the_image_is_this_version(pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        name, _, tag = container["image"].rpartition(":")
        assert name.endswith("/raymix")
        assert tag == f"{PROJECT['version']}-cuda"


def test_the_jobs_cluster_is_the_cluster_with_the_configuration_mounted() -> None:
    spec = json.loads(json.dumps(JOB["spec"]["rayClusterSpec"]))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        pod["volumes"].remove({"name": "config", "configMap": {"name": "raymix-run"}})
        pod["containers"][0]["volumeMounts"].remove({"name": "config", "mountPath": "/config", "readOnly": True})
    assert spec == CLUSTER["spec"]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """The configuration that the job's command line names, as raymix reads it."""
    path = Path(parse_command(JOB["spec"]["entrypoint"])["config"])
    assert path.parent == Path("/config")
    local = tmp_path / path.name
    local.write_text(JOB_FILE["ConfigMap/raymix-run"]["data"][path.name])
    return load_config(local, check_files=False)


def test_the_run_joins_the_cluster_and_finds_room_there(config: RunConfig) -> None:
    cluster = config.cluster
    assert cluster.address == "auto"
    gpus = cpus = 0
    for group in CLUSTER["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        gpus += group["replicas"] * int(requests["nvidia.com/gpu"])
        cpus += group["replicas"] * int(requests["cpu"])
    assert cluster.num_workers * cluster.gpus_per_worker == gpus
    assert cluster.num_workers * cluster.cpus_per_worker < cpus
    assert CLUSTER["spec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_the_run_reads_and_writes_on_the_shared_volume(config: RunConfig) -> None:
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    shared = {"name": "shared", "persistentVolumeClaim": {"claimName": CLAIM["metadata"]["name"]}}
    for what, template in pod_templates():
        if what != "submitter":
            assert shared in template["spec"]["volumes"]
            assert {"name": "shared", "mountPath": "/shared"} in template["spec"]["containers"][0]["volumeMounts"]
    files = [path for domain in config.domains.values() for path in (*domain.train, *domain.eval)]
    for path in (config.output_dir, config.cache_dir, Path(config.model.path), *files):
        assert path.is_relative_to("/shared")


def test_a_failed_job_is_tried_again_and_a_finished_one_leaves_nothing() -> None:
    assert JOB["spec"]["backoffLimit"] >= 1
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True


def test_budgets_hold_the_pods_of_the_cluster() -> None:
    """Without a scale subresource Kubernetes counts by minAvailable alone, and by an integer."""
    spec = CLUSTER["spec"]
    replicas = {"head": 1, "worker": sum(group["replicas"] for group in spec["workerGroupSpecs"])}
    may_go = {"head": 0, "worker": 1}
    for budget in BUDGETS.values():
        labels = dict(budget["spec"]["selector"]["matchLabels"])
        kind = labels.pop("ray.io/node-type")  # which KubeRay itself sets
        assert budget["apiVersion"] == "policy/v1"
        assert budget["spec"].keys() == {"minAvailable", "selector"}
        assert budget["spec"]["minAvailable"] == replicas.pop(kind) - may_go[kind]
        for what, template in pod_templates():
            if what != "submitter":
                assert labels.items() <= template["metadata"]["labels"].items()
    assert replicas == {}
