"""AWS as moto plays it on this machine, with a folder in place of the cluster's head.

``ray up`` starts machines there and reaches them by ``ssh`` and ``rsync``, which are small programs
here: what they are told is done in that folder.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen

import boto3
import yaml

from tests.helpers import NEW_SHELL, ROOT
from tests.helpers.cluster_file import cluster_text

REGION = "eu-central-1"
TOKEN = "0123456789abcdef" * 4
_PARAMETERS = {"Bucket": "my-bucket", "SshFrom": "203.0.113.7/32", "AWS::Partition": "aws"}
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": REGION,
}  # fmt: skip

_SSH = """#!/bin/bash
until [[ $1 == *@* ]]; do shift; done
shift
export HOME=$NODE
cd "$HOME" && exec bash -c "$*"
"""
_RSYNC = """#!/bin/bash
target=${*: -1} source=${*: -2:1}
path=${target#*:} path=${path/#\\~/$NODE}
exec cp -rT "${source%/}" "${path%/}"
"""
# On the node: what would change this machine, or take long, is noted and not done.
_NOTED = """#!/bin/bash
exec >>"$NODE/done.txt"
echo -n "${0##*/}"
printf ' %q' "$@"
echo
env | grep -E '^(RAY_|PYTHONPATH=)' | sort
"""
_SUDO = """#!/bin/bash
exec "$@"
"""
_PYTHON = f"""#!/bin/bash
exec {sys.executable} "$@"
"""


@dataclass(frozen=True)
class Aws:
    """A region of AWS in which deploy/aws.yaml has been set up.

    Args:
        endpoint: the address of all services.
        folder: for the files of a test.
    """

    endpoint: str
    folder: Path

    @property
    def node(self) -> Path:
        """The home folder of every node."""
        return self.folder / "node"

    @property
    def settings(self) -> dict[str, str]:
        """What the environment of a command says that finds this AWS and the nodes."""
        stubs = self.folder / "stubs"
        return {
            **NEW_SHELL, **_CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint,
            "HOME": str(self.folder / "home"), "RAY_TMPDIR": str(self.folder),
            "NODE": str(self.node), "STUBS": str(stubs),
            "PATH": f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def client(self, service: str) -> Any:
        """Return a client of boto3's for a service of this AWS."""
        return boto3.client(service, endpoint_url=self.endpoint, region_name=REGION)

    def instances(self) -> list[dict[str, Any]]:
        """Return the instances that were started, with a dictionary as ``Tags``."""
        found = self.client("ec2").describe_instances()["Reservations"]
        instances = [one for reservation in found for one in reservation["Instances"]]
        for one in instances:
            one["Tags"] = {tag["Key"]: tag["Value"] for tag in one["Tags"]}
        return instances


@contextmanager
def aws(folder: Path) -> Iterator[Aws]:
    """Play AWS inside the ``with``."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with mock.patch.dict(os.environ, _CREDENTIALS):
            host, port = server.get_host_and_port()
            found = nodes(folder, f"http://{host}:{port}")
            # What others have made lies in this process too.
            urlopen(Request(f"{found.endpoint}/moto-api/reset", method="POST")).close()
            _set_up(found, template())
            yield found
    finally:
        server.stop()


def nodes(folder: Path, endpoint: str = "http://127.0.0.1:9") -> Aws:
    """Return where nodes are reached; unless told at which address, there is no AWS."""
    place = Aws(endpoint, folder)
    bins = place.node / "lasaft-env" / "bin"
    stubs = folder / "stubs"
    home = folder / "home"
    for made in (home / ".ray", home / ".ssh", bins, stubs / "node"):
        made.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    (home / ".ssh" / "id_ed25519").write_text("the stub of ssh asks for none")
    programs = {
        stubs / "ssh": _SSH, stubs / "rsync": _RSYNC, stubs / "node" / "sudo": _SUDO,
        stubs / "node" / "apt-get": _NOTED, bins / "pip": _NOTED, bins / "ray": _NOTED,
        bins / "python": _PYTHON,
    }  # fmt: skip
    for path, text in programs.items():
        path.write_text(text)
        path.chmod(0o755)
    (place.node / ".bashrc").write_text("export PATH=$STUBS/node:$PATH\n")
    return place


def ray_up(place: Aws, block: str = "") -> None:
    """Start the cluster of cluster.yaml, with the home folder of the nodes in place of theirs."""
    path = place.folder / "cluster.yaml"
    text = cluster_text(block).replace("/home/ubuntu", str(place.node))
    path.write_text(text.replace('"./', f'"{ROOT}/'))
    done = subprocess.run(
        ["ray", "up", "--yes", "--no-config-cache", path],
        env=place.settings, cwd=place.folder, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def template() -> dict[str, Any]:
    """Return the resources of deploy/aws.yaml, with references to parameters filled in.

    A reference to a resource becomes the resource's name.
    """
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!Ref", lambda _, node: _PARAMETERS.get(node.value, node.value))
    loader.add_constructor("!GetAtt", lambda _, node: node.value.split(".")[0])
    loader.add_constructor("!Sub", _substituted)
    text = (ROOT / "deploy" / "aws.yaml").read_text()
    return yaml.load(text, loader)["Resources"]


def _substituted(_: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    text = node.value
    for name, value in _PARAMETERS.items():
        text = text.replace(f"${{{name}}}", value)
    return text


def _set_up(place: Aws, resources: dict[str, Any]) -> None:
    """Do what CloudFormation does of deploy/aws.yaml."""
    iam, ec2 = place.client("iam"), place.client("ec2")
    of_type: dict[str, dict[str, Any]] = {}
    for name, resource in resources.items():
        of_type.setdefault(resource["Type"], {})[name] = resource["Properties"]
    for role in of_type["AWS::IAM::Role"].values():
        document = json.dumps(role["AssumeRolePolicyDocument"])
        iam.create_role(RoleName=role["RoleName"], AssumeRolePolicyDocument=document)
        for policy in role.get("Policies", []):
            document = json.dumps(policy["PolicyDocument"]).replace(
                '"WorkerRole"', '"arn:aws:iam::123456789012:role/lasaft-worker"'
            )
            iam.put_role_policy(
                RoleName=role["RoleName"], PolicyName=policy["PolicyName"], PolicyDocument=document
            )
    for name, policy in of_type["AWS::IAM::ManagedPolicy"].items():
        iam.create_policy(PolicyName=name, PolicyDocument=json.dumps(policy["PolicyDocument"]))
    for profile in of_type["AWS::IAM::InstanceProfile"].values():
        name = profile["InstanceProfileName"]
        iam.create_instance_profile(InstanceProfileName=name)
        (role,) = profile["Roles"]
        role_name = resources[role]["Properties"]["RoleName"]
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=role_name)
    (group,) = of_type["AWS::EC2::SecurityGroup"].values()
    made = ec2.create_security_group(
        GroupName=group["GroupName"], Description=group["GroupDescription"]
    )
    rules = [
        {**{key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort")},
         "IpRanges": [{"CidrIp": rule["CidrIp"]}]}
        for rule in group["SecurityGroupIngress"]
    ]  # fmt: skip
    (among,) = of_type["AWS::EC2::SecurityGroupIngress"].values()
    pair = {"GroupId": made["GroupId"]}
    rules.append({"IpProtocol": among["IpProtocol"], "UserIdGroupPairs": [pair]})
    ec2.authorize_security_group_ingress(GroupId=made["GroupId"], IpPermissions=rules)
