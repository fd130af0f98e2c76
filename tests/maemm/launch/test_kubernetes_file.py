"""docs/launch/kubernetes.yaml: what its parts must agree on; the command of a pod, read by torchrun's own parser."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from maemm import config

FILE = Path(__file__).parents[3] / "docs/launch/kubernetes.yaml"


@pytest.fixture(scope="module")
def parts():
    """{kind: what is in the file}."""
    return {part["kind"]: part for part in yaml.safe_load_all(FILE.read_text())}


@pytest.fixture(scope="module")
def pod(parts):
    return parts["Job"]["spec"]["template"]["spec"]


def variables(pod, index):
    """The environment of a pod."""
    values = {row["name"]: row["value"] for row in pod["containers"][0]["env"]}
    return {**values, "JOB_COMPLETION_INDEX": str(index)}


def words(pod, index, folder):
    """What torchrun is called with in a pod, by a shell with its environment."""
    torchrun = folder / "torchrun"
    torchrun.write_text('#!/bin/bash\nprintf "%s\\n" "$$" "$@"\n')
    torchrun.chmod(0o755)
    container = pod["containers"][0]
    environment = {**variables(pod, index), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    shell = subprocess.Popen(
        [*container["command"], *container["args"]], env=environment, stdout=subprocess.PIPE, text=True
    )
    number, *said = shell.communicate(timeout=60)[0].splitlines()
    assert int(number) == shell.pid  # the process that Kubernetes signals is torchrun, not a shell around it
    return said


def test_pods_find_each_other(parts, pod):
    job, service = parts["Job"], parts["Service"]
    name, index = job["metadata"]["name"], 0
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"] and job["spec"]["completionMode"] == "Indexed"
    host, port = variables(pod, index)["MEETING_POINT"].split(":")
    assert host == f"{name}-0.{pod['subdomain']}" and int(port) in [row["port"] for row in service["spec"]["ports"]]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables(pod, index)["NODES"])


def test_a_pod_has_what_a_run_needs(parts, pod):
    (container,) = pod["containers"]
    mounts = {row["name"]: row["mountPath"] for row in container["volumeMounts"]}
    volumes = {row["name"]: row for row in pod["volumes"]}
    assert mounts.keys() == volumes.keys() and mounts["shm"] == "/dev/shm"
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    claim = parts["PersistentVolumeClaim"]
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables(pod, 0)["GPUS"])


def test_a_pod_that_is_sent_away_has_time_to_save_and_does_not_count(parts, pod):
    saving = int(variables(pod, 0)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 30 < saving < pod["terminationGracePeriodSeconds"]
    assert variables(pod, 0)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"  # a new agent can join in a later round
    assert pod["restartPolicy"] == "Never"  # a failure policy asks for it
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert parts["Job"]["spec"]["podFailurePolicy"]["rules"] == [rule] and parts["Job"]["spec"]["backoffLimit"] > 0


def test_the_command_of_a_pod(pod, tmp_path):
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
    from torch.distributed.run import _parse_rendezvous_config, get_args_parser

    for index, hosts in ((0, "1"), (1, "0")):
        args = get_args_parser().parse_args(words(pod, index, tmp_path))
        assert (args.nnodes, args.nproc_per_node, args.rdzv_backend) == ("2", "8", "c10d") and args.max_restarts > 0
        assert parse_rendezvous_endpoint(args.rdzv_endpoint, 1) == ("maemm-0.maemm", 29400)
        assert _parse_rendezvous_config(args.rdzv_conf)["is_host"] == hosts  # pod 0 alone holds the store
        verb, recipe, *overrides = args.training_script_args
        assert args.module and (args.training_script, verb) == ("maemm", "pretrain")
        resolved = config.load(recipe, overrides, training=True)
        mounted = [row["mountPath"] for row in pod["containers"][0]["volumeMounts"]]
        assert all(
            any(str(path).startswith(mount) for mount in mounted)
            for path in (resolved["out"], resolved["data"]["root"])
        )
