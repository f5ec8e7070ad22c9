"""Kubernetes resources against their custom resource definition, with unknown fields refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import yaml


def faults(definition: str, resource: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a resource, each with its place; empty if nothing is.

    Args:
        definition: a CustomResourceDefinition (apiextensions.k8s.io/v1) as YAML.
        resource: what it defines. A cluster drops fields that it does not know without a word;
            here they are faults.
    """
    spec = yaml.safe_load(definition)["spec"]
    version = str(resource["apiVersion"]).removeprefix(f"{spec['group']}/")
    schemas = {one["name"]: one["schema"]["openAPIV3Schema"] for one in spec["versions"]}
    if version not in schemas or resource["kind"] != spec["names"]["kind"]:
        return [f"{resource['apiVersion']} {resource['kind']}: not what is defined"]
    validator = jsonschema.Draft202012Validator(_closed(schemas[version]))
    return [f"{one.json_path}: {one.message}" for one in validator.iter_errors(resource)]


def _closed(schema: Any) -> Any:
    """Return the schema with no room for fields that it does not name."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    is_schema = isinstance(schema.get("type"), str) and isinstance(schema.get("properties"), dict)
    if is_schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found
