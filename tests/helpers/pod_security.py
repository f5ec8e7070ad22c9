"""Kubernetes' Pod Security Standard "restricted": what a pod does that it forbids.

Written from the standard's published list of controls; the names of its fields are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


def forbidden(spec: Mapping[str, Any]) -> list[str]:
    """Return what the standard forbids of a pod, each with the field; empty if nothing is."""
    context = spec.get("securityContext", {})
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [
        f"volumes.{volume.get('name')}"
        for volume in spec.get("volumes", [])
        if not volume.keys() & _VOLUMES
    ]
    found += [one["name"] for one in context.get("sysctls", []) if one["name"] not in _SYSCTLS]
    found += _in_both("pod", context)
    for kind in _CONTAINERS:
        for container in spec.get(kind, []):
            found += _of_container(container, context)
    return found


def _in_both(where: str, context: Mapping[str, Any]) -> Iterator[str]:
    """Yield what neither a pod nor a container may say."""
    if context.get("runAsUser") == 0:
        yield f"{where}: runAsUser"
    if context.get("runAsNonRoot") is False:
        yield f"{where}: runAsNonRoot"
    if context.get("seccompProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{where}: seccompProfile"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{where}: appArmorProfile"
    if context.get("seLinuxOptions", {}).keys() & {"user", "role"}:
        yield f"{where}: seLinuxOptions"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{where}: windowsOptions.hostProcess"


def _of_container(container: Mapping[str, Any], of_pod: Mapping[str, Any]) -> Iterator[str]:
    where, own = str(container.get("name")), container.get("securityContext", {})
    yield from _in_both(where, own)
    if own.get("privileged"):
        yield f"{where}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: allowPrivilegeEscalation"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{where}: capabilities.drop"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{where}: capabilities.add"
    if own.get("procMount", "Default") != "Default":
        yield f"{where}: procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{where}: hostPort"
    # What is said of the pod holds for a container that says nothing.
    both = {**of_pod, **own}
    if both.get("runAsNonRoot") is not True:
        yield f"{where}: runAsNonRoot"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where}: seccompProfile"
