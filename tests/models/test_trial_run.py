"""A trial run on the meta device has the shapes, the saved tensors and the mistakes of a real one."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from finetune.errors import UserError
from finetune.models import trial_run


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))


def saved(run) -> tuple[torch.Size, int]:
    """The output's shape, and the bytes that autograd saves in the activations' shapes."""
    seen = {}

    def save(tensor):
        if tensor.ndim == 4:
            seen[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        output = run()
    return output.shape, sum(seen.values())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batchnorm_keeps_the_shape_and_saves_what_torchs_own_does(dtype, frozen):
    model = network()
    if frozen:
        model[1].eval().requires_grad_(False)
    held = trial_run.tensors(model, dtype)
    images = torch.empty(5, 3, 9, 9, device="meta", dtype=dtype)
    own = saved(lambda: functional_call(model, held, (images,)))
    assert saved(lambda: trial_run.outputs(model, held, (5, 3, 9, 9), dtype)) == own
    assert own[0] == (5, 4, 5, 5)


def test_the_model_keeps_its_own_tensors():
    model = network()
    trial_run.outputs(model, trial_run.tensors(model), (2, 3, 9, 9), torch.float32)
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    assert model[1].num_batches_tracked == 0


def test_images_that_a_network_does_not_take_are_named():
    model = network()
    for side, reason in ((4, "Calculated padded input size"), (3, "more than one value per channel")):
        with pytest.raises(UserError, match=rf"--image-size {side}: .*{reason}"):
            trial_run.outputs(model, trial_run.tensors(model), (1, 3, side, side), torch.float32)
    model.eval()
    with pytest.raises(UserError, match="Calculated padded input size"):
        trial_run.outputs(model, trial_run.tensors(model), (1, 3, 3, 3), torch.float32)
