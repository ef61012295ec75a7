"""The network of a run: what each epoch trains, and what is known of it before the run."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support import write_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from finetune import recipes
from finetune.config.settings import Net, Rate, Recipe
from finetune.models import metadata, network, surgery, weights
from finetune.models.architectures import find, preprocess
from finetune.models.network import BATCHNORM, Network


def empty(rates: list[Rate | None], **settings) -> Network:
    """A network on the meta device, with these rates."""
    net = Net(**{"model": "resnet18", "weights": "none", "image_size": 32, **settings})
    return Network(*surgery.build(net, 3, empty=True), rates, find(net.model))


def test_frozen_depths_have_no_gradients_and_are_in_evaluation_mode():
    net = empty([None] * 4 + [Rate(0.1), Rate(1.0)])
    net.set_phase(epoch=0)
    depths = net.depths()
    for name, parameter in net.model.named_parameters():
        assert parameter.requires_grad == (depths[name] >= 4), name
    norms = {path: module for path, module in net.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(norms) == 20
    for path, module in norms.items():
        assert module.training == path.startswith("layer4"), path


def test_a_depth_starts_at_its_epoch_and_is_frozen_again_before_it():
    net = empty([None, None, None, None, Rate(0.1, start=2), Rate(1.0)])
    for epoch, trained in ((0, False), (1, False), (2, True), (3, True), (0, False)):
        net.set_phase(epoch)
        assert net.model.layer4[0].conv1.weight.requires_grad is trained
        assert net.model.layer4[0].bn1.training is trained
        assert not net.model.layer3[0].bn1.training
        assert net.model.fc.weight.requires_grad


def test_parameters_that_belong_to_no_smaller_module_follow_their_depth():
    stem = {"class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias"}
    for stem_rate in (None, Rate(1.0)):
        net = empty([stem_rate] + [Rate(1.0)] * 13, model="vit_b_16")
        net.set_phase(epoch=0)
        frozen = {name for name, parameter in net.model.named_parameters() if not parameter.requires_grad}
        assert frozen == (set() if stem_rate else stem) == net.frozen_keys()


def test_a_heads_keys_are_never_frozen_since_it_may_be_solved():
    assert not [key for key in empty([Rate(1.0)] * 5 + [None]).frozen_keys() if key.startswith("fc.")]


def test_frozen_keys_are_parameters_and_buffers_of_depths_that_are_never_trained():
    net = empty([None, None, Rate(0.1, start=9), Rate(1.0), Rate(1.0), Rate(1.0)])
    keys = net.frozen_keys()
    assert keys == {key for key in net.model.state_dict() if key.startswith(("conv1.", "bn1.", "layer1."))}
    assert {"conv1.weight", "bn1.running_mean", "layer1.1.bn2.num_batches_tracked"} <= keys


@pytest.mark.parametrize(
    ("stem", "epochs"), [(None, math.inf), (Rate(0.1, start=3), 3), (Rate(1.0), 0)]
)  # fmt: skip
def test_the_stem_is_frozen_until_its_epoch(stem, epochs):
    assert empty([stem, *[Rate(1.0)] * 5]).frozen_epochs() == epochs


def test_a_phase_starts_where_a_depth_does_within_the_run():
    net = empty([None, Rate(1, start=6), Rate(1, start=4), Rate(1, start=4), Rate(1, start=2), Rate(1)])
    assert net.phase_starts(epochs=7) == [0, 2, 4, 6]
    assert net.phase_starts(epochs=6) == [0, 2, 4]
    assert net.phase_starts(epochs=1) == [0]
    assert empty([None] * 6).phase_starts(epochs=3) == [0]


def test_batchnorm_is_trained_if_it_lies_at_a_depth_that_ever_is():
    head, late = [None] * 5 + [Rate(1.0)], [None] * 4 + [Rate(0.1, start=5), Rate(1.0)]
    assert not empty(head).trains_batchnorm()
    assert empty(late).trains_batchnorm()
    assert empty(head, head="concat_pool", hidden=(8,)).trains_batchnorm(), "that of the head"
    assert not empty([Rate(1.0)] * 14, model="vit_b_16").trains_batchnorm(), "it has none"
    assert [empty(head).has_batchnorm(depth) for depth in range(6)] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("model", "normalised"),
    [("alexnet", False), ("vgg11", False), ("squeezenet1_0", False)]
    + [(name, True) for name in ("vgg11_bn", "mobilenet_v2", "convnext_tiny", "vit_b_16", "swin_t")],
)
def test_a_network_knows_whether_it_has_normalisation_layers(model, normalised):
    size = 224 if model == "vit_b_16" else 64
    assert empty([None, Rate(1.0)], model=model, image_size=size).is_normalised() == normalised


# ---- --batchnorm -----------------------------------------------------------------------------------------------------
def test_a_kept_batchnorm_is_in_evaluation_mode_and_its_weights_are_trained():
    net = empty([None] * 3 + [Rate(0.1, start=1), Rate(0.1), Rate(1.0)], head="concat_pool", hidden=(8,))
    net.keep_batchnorm = True
    assert [net.batchnorm(depth) for depth in range(6)] == ["kept"] * 3 + ["weights"] * 2 + ["trained"]
    for epoch, started in ((0, "layer4."), (1, ("layer3.", "layer4."))):
        net.set_phase(epoch)
        norms = {path: module for path, module in net.model.named_modules() if isinstance(module, BATCHNORM)}
        assert len(norms) == 22
        for path, module in norms.items():
            assert module.weight.requires_grad == path.startswith((*([started] if epoch == 0 else started), "fc."))
            assert module.training == path.startswith("fc."), "a new head has no statistics to keep"
        assert net.model.layer4.training
    assert net.trains_batchnorm(), "the head's"
    plain = empty([Rate(1.0)] * 6)
    plain.keep_batchnorm = True
    assert not plain.trains_batchnorm()


@pytest.mark.parametrize(
    ("settings", "images", "processes", "keeps", "why"),
    [
        ({"batch_size": 16}, 300, 1, True, "300 images are too few"),
        ({"batch_size": 64}, 19_999, 1, True, "19999 images are too few"),
        ({"batch_size": 64}, 20_000, 1, False, "20000 images, 64 at a time, are enough"),
        ({"batch_size": 64}, 20_000, 4, True, "16 images at a time are too few"),
        ({"batch_size": 64, "accumulate": 4}, 20_000, 1, True, "16 images at a time are too few"),
        ({"batch_size": 64, "weights": "none"}, 300, 1, False, "random weights have no statistics"),
        ({"batchnorm": "train"}, 300, 1, False, "--batchnorm train"),
        ({"batchnorm": "keep", "batch_size": 64}, 50_000, 1, True, "--batchnorm keep"),
    ],
)
def test_whether_batchnorm_is_kept_follows_from_images_batch_and_weights(settings, images, processes, keeps, why):
    recipe = recipes.from_settings("finetune", settings)
    kept, reason = network.keeps_batchnorm(recipe, images, processes)
    assert kept is keeps
    assert why in reason


def test_training_leaves_kept_statistics_as_they_were_to_the_bit(train, capsys):
    code, output = train("--recipe", "finetune", "--weights", "starter", "--lr", "1e-2", "--batch-size", "1")
    assert code == 0, "a batch of one image is enough"
    assert "weights trained, statistics kept: 21 images are too few" in " ".join(capsys.readouterr().out.split())
    state, pretrained = (
        load_file(output / "model" / "model.safetensors"),
        weights.read("shufflenet_v2_x0_5", "starter")[0],
    )
    norms = {key.rpartition(".")[0] for key in state if key.endswith("running_mean")}
    assert len(norms) == 56
    for norm in norms:
        for kind in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(state[f"{norm}.{kind}"], pretrained[f"{norm}.{kind}"])
    assert not all(torch.equal(state[f"{norm}.weight"], pretrained[f"{norm}.weight"]) for norm in norms)


@pytest.mark.parametrize("batchnorm", ["keep", "train"])
def test_a_frozen_depth_between_trained_ones_keeps_every_bit(train, batchnorm):
    flags = ("--recipe", "finetune", "--train-depths", "stem", "3", "head", "--batchnorm", batchnorm)
    code, output = train(*flags, "--weights", "starter", "--lr", "1e-2", "--ema", "0.5")
    assert code == 0
    state, pretrained = (
        load_file(output / "model" / "model.safetensors"),
        weights.read("shufflenet_v2_x0_5", "starter")[0],
    )
    trained, seen = ("conv1.", "stage4.", "fc."), 0
    for key, value in state.items():
        if not key.startswith(trained):
            assert torch.equal(value, pretrained[key]), key
            seen += 1
        elif key.endswith("running_mean"):
            assert torch.equal(value, pretrained[key]) == (batchnorm == "keep"), key
        elif key.endswith("weight") and not key.startswith("fc."):
            assert not torch.equal(value, pretrained[key]), key
    assert seen > 100


def test_weight_decay_spares_vectors_and_what_the_architecture_names():
    net = empty([Rate(1.0)] * 14, model="vit_b_16")
    spared = {name for name, _ in net.model.named_parameters() if net.no_decay(name)}
    assert {"class_token", "encoder.pos_embedding", "conv_proj.bias", "encoder.ln.weight", "heads.head.bias"} <= spared
    assert not spared & {"conv_proj.weight", "heads.head.weight"}
    assert not any(name.endswith("mlp.0.weight") for name in spared)


def test_the_average_is_what_is_evaluated():
    net = empty([Rate(1.0)] * 6)
    assert net.evaluated is net.model
    net.average = AveragedModel(net.model)
    assert net.evaluated is net.average.module is not net.model


def test_a_recipes_network_starts_in_its_first_phase_and_from_the_seeds_weights():
    recipe = recipes.from_settings("linear_then_finetune", {"weights": "none", "head": "mlp", "hidden": (8,)})
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(network.build(recipe, 3))
    one, other = built
    assert one.rates == recipes.rates(recipe, len(one.stages))
    assert {name for name, p in one.model.named_parameters() if p.requires_grad} == {
        f"fc.{name}" for name, _ in one.model.fc.named_parameters()
    }
    state = other.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.model.state_dict().items())


def test_a_fit_replaces_that_of_the_weights_which_is_kept_without_one(tmp_path):
    _, preprocess = write_model(tmp_path)
    known = metadata.read(tmp_path)
    metadata.write(tmp_path, replace(known, preprocess=replace(preprocess, fit="squash")))
    for weights_from, fit, expected in (
        ("none", None, "crop"), ("none", "pad", "pad"), (tmp_path, None, "squash"), (tmp_path, "crop", "crop")
    ):  # fmt: skip
        recipe = recipes.from_settings("finetune", {"weights": weights_from, "model": "shufflenet_v2_x0_5", "fit": fit})
        assert network.build(recipe, 3).preprocess.fit == expected
        restored = replace(preprocess, fit="pad")
        assert network.build(recipe, 3, restored=restored).preprocess == restored


def test_a_network_for_a_checkpoint_has_its_transform_and_reads_no_weights():
    recipe = Recipe(net=Net("shufflenet_v2_x0_5", weights="/gone.safetensors", image_size=64))
    transform = preprocess("shufflenet_v2_x0_5").at_size(48)
    net = network.build(recipe, 3, restored=transform)
    assert net.preprocess == transform
    assert not any(parameter.is_meta for parameter in net.model.parameters())
