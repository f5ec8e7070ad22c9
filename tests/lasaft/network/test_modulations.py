"""A modulation is one file: written into the package, it works everywhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lasaft.network.modulations import Modulation, modulation_class
from lasaft.parts import MODULATIONS
from tests.helpers import ROOT

BIN_GAIN = '''"""Multiplies each frequency bin by a gain of its own."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lasaft.config import ModelConfig
from lasaft.network.modulations import Modulation

LABEL = "BinGain"
OPTIONS = ("gamma_activation",)


class BinGain(Modulation):
    """x * (1 + gain), with one gain a bin."""

    @staticmethod
    def numbers(config: ModelConfig, bins: int) -> tuple[int, int]:
        """Return one gamma a bin, and no betas."""
        return bins, 0

    def modulate(
        self,
        x: Float[Tensor, "batch channel frame bin"],
        gamma: Float[Tensor, "batch bin"],
        beta: Float[Tensor, "batch 0"],
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return x * (1 + gamma)."""
        return x * (1 + gamma[:, None, None])
'''

# Runs where the package has one file more; its last line is the number of exports written.
USES = """
import sys
from pathlib import Path

import lasaft
from lasaft.config import ModelConfig, variant_name
from lasaft.parts import MODULATIONS
from lasaft.idle_options import without_effect
from jobs.cli.command import parse
from pipeline.search.space_reader import read_space

folder = Path(sys.argv[1])
help_text = parse(["--help", "modulation"], "train").help
assert "bin_gain Multiplies each frequency bin by a gain of its own" in " ".join(help_text.split())
(folder / "own.yaml").write_text("model: {modulation: bin_gain, block: tfc_tdf}\\n")
words = ["--preset", "demo", "--preset", str(folder / "own.yaml"), "--gamma_activation", "tanh"]
preset = parse(words, "run")
assert preset.config.model.modulation == "bin_gain"
(folder / "space.yaml").write_text("options: {modulation: [film, bin_gain]}\\n")
assert read_space(str(folder / "space.yaml")).dimensions[0].choices == ("film", "bin_gain")
assert "torch" not in sys.modules, "reading options must not wait for torch"

import torch
from lasaft.export import FORMATS, export_model
from lasaft.fast.specialise import specialise
from tests.helpers.models import random_spec, small_config, small_model

options = {"modulation": "bin_gain", "block": "tfc_tdf", "condition_to": "full"}
options["n_internal_layers"] = 1
config = small_config(**options)
assert ModelConfig.model_validate_json(config.model_dump_json()) == config
assert variant_name(config) == "CUNET_TFC_BinGain_TDF"
idle = without_effect(config)
assert "gamma_activation" not in idle
for name in ("beta_activation", "film_type", "pocm_norm"):
    assert "because modulation is bin_gain" in str(idle[name])

model = small_model(**options)
mixture = torch.randn(2, 2, config.hop_length * (config.num_frame - 1))
with torch.no_grad():
    one, other = (model(mixture, torch.tensor([source, source])) for source in (0, 1))
    spec = random_spec(model)
    plain = [model.estimate(spec, torch.tensor([source] * 2)) for source in (2, 0)]
    fast = specialise(model, [2, 0])(spec)
assert one.shape == mixture.shape
assert not torch.equal(one, other)
torch.testing.assert_close(fast, torch.stack(plain, dim=1), rtol=1e-4, atol=1e-4)

model.train()
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
before = {name: parameter.clone() for name, parameter in model.named_parameters()}
model.estimate(spec, torch.tensor([0, 1])).square().mean().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
optimiser.step()
name = "network.conditioner.gamma.linear.weight"
assert before[name].shape[0] == sum(config.block_bins) == 32 + 16 + 32
assert not torch.equal(before[name], model.get_parameter(name))

written = [export_model(model, folder / f"network{ending}").path for ending in FORMATS[1:]]
if sys.argv[2] == "onnx":
    written.append(export_model(model, folder / "network.onnx").path)
print(len(written))
"""


def test_a_new_modulation_is_one_file(tmp_path: Path) -> None:
    assert BIN_GAIN.count("\n") <= 60
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "lasaft", tree / "lasaft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("jobs", "pipeline", "tests"):
        (tree / name).symlink_to(ROOT / name)
    (tree / "lasaft" / "network" / "modulations" / "bin_gain.py").write_text(BIN_GAIN)
    extra = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    done = subprocess.run(
        [sys.executable, "-c", USES, str(tmp_path), "onnx" if extra else ""],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == ("2" if extra else "1")


@pytest.mark.parametrize("name", [name for name in MODULATIONS if name != "none"])
def test_each_file_declares_its_class_and_its_help(name: str) -> None:
    assert issubclass(modulation_class(name), Modulation)
    assert modulation_class(name).__name__ == MODULATIONS[name].label
    assert len(MODULATIONS[name].summary) > 20
