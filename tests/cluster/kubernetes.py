"""Kubernetes manifests, read strictly: each kind against its schema, unknown and repeated keys refused.

Kubernetes' own kinds by its own schema (schemas/); KubeRay's by the models below, which hold the fields
that cluster/ uses as KubeRay's v1 API has them (docs/reference/api.md of ray-project/kuberay, 1.5.1 and later;
compared with the Go types behind its custom resources, ray-operator/apis/ray/v1).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA = json.loads(Path(__file__).with_name("schemas").joinpath("kubernetes-1.37.json").read_text())
KINDS = {
    ("v1", "PersistentVolumeClaim"): "io.k8s.api.core.v1.PersistentVolumeClaim",
    ("v1", "ServiceAccount"): "io.k8s.api.core.v1.ServiceAccount",
    ("batch/v1", "CronJob"): "io.k8s.api.batch.v1.CronJob",
    ("rbac.authorization.k8s.io/v1", "Role"): "io.k8s.api.rbac.v1.Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "io.k8s.api.rbac.v1.RoleBinding",
}
# Kubernetes' schema has these as any text (its API reference names the values).
VALUES = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "operator": {"Exists", "Equal"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
}
SUFFIXES = {"m": 1e-3, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class StrictLoader(yaml.SafeLoader):
    """YAML, with a repeated key an error. `<<` may be overridden by keys beside it, as YAML has it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if len(keys) > len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, f"repeated key in {keys}", node.start_mark)
        self.flatten_mapping(node)
        return {self.construct_object(k, deep): self.construct_object(v, deep) for k, v in node.value}


StrictLoader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True)
)


def check_values(value: Any) -> None:
    """Every field of VALUES, however deep."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        given = set(inner if isinstance(inner, list) else [inner]) if name in VALUES else set()
        assert given <= VALUES.get(name, given), f"{name}: {given}"
    for inner in (
        (value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else ()
    ):
        check_values(inner)


def definition(name: str, value: Any) -> Any:
    """The value, if it is what Kubernetes' schema has under that name; else jsonschema.ValidationError."""
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(value)
    return value


def pod(value: dict[str, Any]) -> dict[str, Any]:
    definition("io.k8s.api.core.v1.PodTemplateSpec", value)
    volumes = {volume["name"] for volume in value["spec"].get("volumes", ())}
    for container in value["spec"]["containers"]:
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        assert mounted <= volumes, f"no volume {mounted - volumes}"
        for amounts in container["resources"].values():
            assert all(quantity(amount) > 0 for amount in amounts.values())
    return value


def quantity(text: str) -> float:
    """Kubernetes' quantities, `100m` or `16Gi`."""
    digits = text.rstrip("KMGTim")
    return float(digits) * SUFFIXES[text.removeprefix(digits)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Pod = Annotated[dict[str, Any], AfterValidator(pod)]
Meta = Annotated[
    dict[str, Any],
    AfterValidator(lambda value: definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", value)),
]
Count = Annotated[int, Field(ge=0)]


class Auth(Strict):
    mode: Literal["token", "disabled"]


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Pod


class WorkerGroup(HeadGroup):
    groupName: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")  # noqa: N815
    replicas: Count
    minReplicas: Count  # noqa: N815
    maxReplicas: Count  # noqa: N815

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class Cluster(Strict):
    rayVersion: str = Field(pattern=r"^\d+\.\d+\.\d+$")  # noqa: N815
    authOptions: Auth  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815

    @model_validator(mode="after")
    def _names(self) -> "Cluster":
        names = [group.groupName for group in self.workerGroupSpecs]
        assert len(names) == len(set(names)), "a group's name is its own"
        return self


class RayJobSpec(Strict):
    entrypoint: str
    backoffLimit: Count = 0  # noqa: N815
    shutdownAfterJobFinishes: bool = False  # noqa: N815
    ttlSecondsAfterFinished: Count = 0  # noqa: N815
    activeDeadlineSeconds: int | None = Field(None, gt=0)  # noqa: N815
    rayClusterSpec: Cluster  # noqa: N815

    @model_validator(mode="after")
    def _operator_rules(self) -> "RayJobSpec":
        assert self.shutdownAfterJobFinishes or not self.ttlSecondsAfterFinished, "only with a shutdown"
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Meta
    spec: RayJobSpec


def documents(text: str) -> Iterator[dict[str, Any]]:
    """The manifests of a file, each checked."""
    for document in yaml.load_all(text, StrictLoader):  # a SafeLoader
        check_values(document)
        kind = (document["apiVersion"], document["kind"])
        if kind == ("ray.io/v1", "RayJob"):
            RayJob.model_validate(document)
        else:
            definition(KINDS[kind], document)
        assert document["metadata"].get("name") or document["metadata"].get("generateName")
        yield document
