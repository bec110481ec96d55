"""The manifests: every kind by its schema, what they name exists, and the groups hold the nightly job's pools."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from importlib.metadata import version

import jsonschema
import pytest
import typer
import yaml
from pydantic import ValidationError

from routelmt_batch.cli.main import app
from routelmt_batch.engines.pools import Pools
from routelmt_batch.spec.file import load
from tests.cluster.kubernetes import RayJob, documents, pod, quantity
from tests.conftest import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
FILES = ("account.yaml", "rayjob.yaml", "nightly.yaml", "volumes.yaml")
TEXTS = {name: (CLUSTER / name).read_text(encoding="utf8") for name in FILES}
MANIFESTS = {name: list(documents(text)) for name, text in TEXTS.items()}
JOB = RayJob.model_validate(MANIFESTS["rayjob.yaml"][0])
CLUSTER_SPEC = JOB.spec.rayClusterSpec
CRON, *RIGHTS = MANIFESTS["nightly.yaml"]


def test_the_kinds_are_these():
    kinds = {name: [document["kind"] for document in found] for name, found in MANIFESTS.items()}
    assert kinds == {
        "account.yaml": ["ServiceAccount"],
        "rayjob.yaml": ["RayJob"],
        "nightly.yaml": ["CronJob", "ServiceAccount", "Role", "RoleBinding"],
        "volumes.yaml": ["PersistentVolumeClaim", "PersistentVolumeClaim"],
    }


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rayjob.yaml", "backoffLimit: 2", "backofLimit: 2"),
        ("rayjob.yaml", "backoffLimit: 2", "backoffLimit: '2'"),
        ("rayjob.yaml", "mode: token", "mode: tokens"),
        ("rayjob.yaml", "groupName: small", "groupName: router"),
        ("rayjob.yaml", "mountPath: /home/ray/.cache}", "mountpath: /home/ray/.cache}"),
        ("rayjob.yaml", "- {name: cache, mountPath", "- {name: caches, mountPath"),
        ("rayjob.yaml", "emptyDir: {sizeLimit", "emptyDir: {sizelimit"),
        ("rayjob.yaml", "serviceAccountName: routelmt", "serviceaccountName: routelmt"),
        ("rayjob.yaml", "- secretRef: {name", "- secretRef: {names"),
        ("account.yaml", "  annotations:", "  annotation:"),
        ("rayjob.yaml", "maxReplicas: 4", "maxReplicas: 3"),
        ("nightly.yaml", "  schedule:", "  Schedule:"),
        ("nightly.yaml", "restartPolicy: Never", "restartPolicy: 1"),
        ("nightly.yaml", "timeZone:", "schedule: x\n  timeZone:"),
        ("nightly.yaml", "restartPolicy: Never", "restartPolicy: OnSuccess"),
        ("nightly.yaml", "concurrencyPolicy: Forbid", "concurrencyPolicy: Forbidden"),
        ("rayjob.yaml", "operator: Exists", "operator: Exist"),
        ("volumes.yaml", "accessModes: [ReadWriteMany]", "accessModes: ReadWriteMany"),
        ("volumes.yaml", "accessModes: [ReadWriteMany]", "accessModes: [ReadWriteAll]"),
    ],
)
def test_a_slip_is_refused(name, old, new):
    assert old in TEXTS[name]
    with pytest.raises((ValidationError, jsonschema.ValidationError, yaml.YAMLError, AssertionError)):
        list(documents(TEXTS[name].replace(old, new, 1)))


def pods() -> list[dict]:
    groups = [CLUSTER_SPEC.headGroupSpec, *CLUSTER_SPEC.workerGroupSpecs]
    return [group.template["spec"] for group in groups]


def test_what_pods_mount_is_made_by_the_commands_and_files_here():
    told = "".join(TEXTS.values())
    made = dict(re.findall(r"kubectl create configmap (\S+) --from-file=(\S+)", told))
    cron_pod = CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for spec in [*pods(), cron_pod]:
        for volume in spec["volumes"]:
            own = "emptyDir" in volume
            assert own or (REPOSITORY / made[volume["configMap"]["name"]]).is_file(), "no volume is shared"
    # A ConfigMap's files have the names that they had.
    assert "/etc/routelmt/nightly.yaml" in JOB.spec.entrypoint and made["routelmt-nightly"].endswith(
        "/nightly.yaml"
    )
    assert cron_pod["containers"][0]["command"][-1] == "/etc/routelmt/rayjob.yaml"
    assert made["routelmt-rayjob"] == "cluster/rayjob.yaml"


def test_the_variant_with_shared_volumes_is_what_its_comment_says():
    """Its lines, put into a pod of rayjob.yaml, are a pod by the same strict rules, and claim what is made here."""
    comment = [line for line in TEXTS["volumes.yaml"].splitlines() if line.startswith("#   ")]
    variant = yaml.safe_load(
        "\n".join(line.removeprefix("#   ") for line in comment if "kubectl" not in line)
    )
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in variant["volumes"]]
    assert sorted(claims) == sorted(document["metadata"]["name"] for document in MANIFESTS["volumes.yaml"])
    for spec in pods():
        [container], volumes = spec["containers"], {volume["name"]: volume for volume in spec["volumes"]}
        volumes |= {volume["name"]: volume for volume in variant["volumes"]}
        mounts = container["volumeMounts"] + variant["volumeMounts"]
        changed = {
            **spec,
            "containers": [{**container, "volumeMounts": mounts}],
            "volumes": list(volumes.values()),
        }
        assert pod({"spec": changed})
        assert {mount["name"] for mount in mounts} == volumes.keys() == {"cache", "corpora", "spec"}


def test_the_pods_have_the_accounts_rights_and_keep_models_on_their_own_disk():
    [account] = MANIFESTS["account.yaml"]
    for spec in pods():
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        # Where Hugging Face, vLLM and this package keep what they fetch, for the image's user.
        assert mounts["cache"] == "/home/ray/.cache"
        assert spec["securityContext"]["fsGroup"] == 1000, "the image's user may write there"


def test_the_schedule_may_create_the_job_and_nothing_else():
    account, role, binding = RIGHTS
    name = account["metadata"]["name"]
    assert CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"] == name
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] and binding["subjects"][0]["name"] == name
    assert len(CRON["spec"]["schedule"].split()) == 5
    assert CRON["spec"]["timeZone"] == "Etc/UTC", "as the pods' clocks, which date the night's folder"


def test_the_cluster_runs_the_pinned_ray_with_a_token():
    assert CLUSTER_SPEC.rayVersion == version("ray")
    assert CLUSTER_SPEC.authOptions.mode == "token"
    images = {pod["containers"][0]["image"] for pod in pods()}
    assert len(images) == 1


def test_the_entrypoint_is_a_command_that_run_takes():
    """The date is the shell's, where KubeRay starts `ray job submit`."""
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {JOB.spec.entrypoint}"], capture_output=True, text=True, check=True
    )
    program, command, *arguments = told.stdout.split("\n")[:-1]
    assert (program, command) == ("routelmt-batch", "run")
    assert re.fullmatch(r"s3://corpora/out/\d{4}-\d\d-\d\d", arguments[arguments.index("--output") + 1])
    commands = typer.main.get_command(app).commands
    context = commands["run"].make_context("run", arguments)
    assert context.params["address"] == "auto"
    assert shlex.split(JOB.spec.entrypoint)[2] == "/etc/routelmt/nightly.yaml"


@dataclass
class Ray:
    """A Ray cluster of the manifest's workers, as KubeRay starts them: resources by each pod's limits."""

    local = False
    cores = 1

    def resource(self, name: str) -> float:
        key = {"GPU": "nvidia.com/gpu", "CPU": "cpu"}[name]
        return sum(
            group.replicas
            * quantity(group.template["spec"]["containers"][0]["resources"]["limits"].get(key, "0"))
            for group in CLUSTER_SPEC.workerGroupSpecs
        )


def test_the_groups_hold_the_pools_of_the_nightly_job():
    spec, ray = load(REPOSITORY / "jobs" / "nightly.yaml"), Ray()
    engine = Pools(ray)
    small, large, router, metric = spec.models.small, spec.models.large, spec.router, spec.metric
    assert metric
    assert engine.has_room_for([small, large]), "side by side"
    assert engine.check_fit([{"router": router}, {"small": small, "large": large}, {"metric": metric}]) == []
    gpus = ray.resource("GPU")
    assert gpus == 9 == router.replicas.min * engine.gpus(router), "scoring uses every GPU"
    assert gpus == sum(pool.replicas.min * engine.gpus(pool) for pool in (small, large)), (
        "so does translation"
    )
    for group in CLUSTER_SPEC.workerGroupSpecs:
        limits = group.template["spec"]["containers"][0]["resources"]["limits"]
        for pool in (small, large, router, metric):
            assert engine.gpus(pool) <= quantity(limits["nvidia.com/gpu"])
            assert pool.cpus < quantity(limits["cpu"]), "a read has room beside an engine"


def test_each_pool_has_a_group_and_engines_stay_off_the_head():
    assert [group.groupName for group in CLUSTER_SPEC.workerGroupSpecs] == [
        "router",
        "small",
        "large",
        "quality",
    ]
    assert CLUSTER_SPEC.headGroupSpec.rayStartParams == {"num-cpus": "0", "num-gpus": "0"}
