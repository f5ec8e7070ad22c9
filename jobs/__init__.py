"""The commands: one thin file each."""

import importlib.util
import sys

# What the extra "pipeline" brings, by the names under which it is imported.
_NEEDED = (
    "PIL", "fsspec", "grpc", "jinja2", "matplotlib", "mlflow", "musdb", "museval", "obstore",
    "psutil", "pyarrow", "ray", "yaml",
)  # fmt: skip
if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    sys.exit(
        f"jobs: {', '.join(missing)} cannot be imported; at the top of this checkout: "
        "pip install -c constraints.txt -e '.[pipeline]'"
    )
