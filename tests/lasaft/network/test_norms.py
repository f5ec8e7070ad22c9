"""Normalisations by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lasaft.network.norms import norm_2d
from tests.helpers.models import random_spec, small_model


@pytest.mark.parametrize(("channels", "groups"), [(24, 4), (20, 5), (9, 3), (7, 1), (4, 1), (1, 1)])
def test_groups_are_the_largest_divisor_up_to_about_the_root(channels: int, groups: int) -> None:
    norm = norm_2d("gn", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_a_network_with_group_norm_treats_each_item_alone_in_training_too() -> None:
    options = {"norm": "gn", "pocm_norm": None, "control_n_layer": 1}
    model, spec = small_model(**options).train(), random_spec(small_model(), batch=3)
    condition = torch.tensor([0, 1, 2])
    together = model.estimate(spec, condition)
    for item in range(3):
        alone = model.estimate(spec[item : item + 1], condition[item : item + 1])
        torch.testing.assert_close(alone, together[item : item + 1])
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
