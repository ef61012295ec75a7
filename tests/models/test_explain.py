"""Heat maps: where they are bright, on every architecture, and that explaining leaves a model as it was."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from support import MODELS, build_empty, reset_accelerate
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from finetune import starter
from finetune.config.settings import Net
from finetune.inference.transform import make_transform
from finetune.models import architectures, model_folder, surgery
from finetune.models.architectures import Family, Preprocess
from finetune.models.explain import CELLS, Explainer, make_explainer

QUICK = ("shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5")
FIRST = [family.models.split()[0] for family in architectures.FAMILIES]
OTHERS = [name for name in FIRST if name not in (*QUICK, "squeezenet1_0") and (name[:3] != "vgg" or name == "vgg11")]
HEADS = ({}, {"head": "mlp", "in_channels": 1}, {"head": "concat_pool"})
OTHERS_WITH_HEADS = [  # a model without a map, such as ViT, has nothing to pool
    (name, settings)
    for name in OTHERS
    for settings in HEADS
    if settings.get("head") != "concat_pool" or architectures.find(name).pool
]


def plain(side: int) -> Preprocess:
    return Preprocess(side, side, "bilinear", (0.5,) * 3, (0.5,) * 3)


def build(name: str, side: int, **settings) -> tuple[nn.Module, Net, Preprocess]:
    """A random model without zeros in its head, as a model folder gives it."""
    net = Net(model=name, weights="none", image_size=side, **settings)
    torch.manual_seed(0)
    model, preprocess, _ = surgery.build(net, 3)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False), net, preprocess


def windows(*sizes: tuple[int, int, int]) -> tuple[nn.Module, Family]:
    """Convolutions (kernel, stride, padding) that average, and a head that reads the mean of the map."""
    layers = [nn.Conv2d(3 if k == 0 else 1, 1, *size, bias=False) for k, size in enumerate(sizes)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    names = [f"conv{k}" for k in range(len(layers))]
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(1, 2)}
    nn.init.constant_(head["head"].weight, 1.0)
    model = nn.Sequential(OrderedDict(zip(names, layers, strict=True)) | head)
    return model, Family("windows", (*names, "head"), "head", "conv0", "pool", "head")


@pytest.mark.parametrize(
    "sizes",
    [
        [(3, 2, 1)] * 3,  # cells are centred on pixels 0, 8, 16, …
        [(4, 4, 0), (2, 2, 0)],  # on 3.5, 11.5, …
        [(3, 1, 0), (3, 2, 0), (3, 2, 1)],  # on 2, 6, 10, …
    ],
)
def test_the_heat_is_centred_on_the_one_bright_spot(sizes):
    model, family = windows(*sizes)
    explainer, pixels, errors = Explainer(model, family, plain(64)), torch.arange(64.0), []
    for k in range(24, 40):  # all positions between two cells
        x = torch.zeros(1, 3, 64, 64)
        x[..., k, 63 - k] = 1
        heat = explainer(x, torch.tensor([0]))[0]
        rows, columns = (heat.sum(axis) @ pixels / heat.sum() for axis in (1, 0))
        errors.append([(rows - k).item(), (columns - (63 - k)).item()])
    assert len(errors) == 16
    assert np.abs(np.mean(errors, 0)).max() < 0.5, "a shift of all maps"
    assert np.abs(errors).max() < 5


def test_behind_the_last_map_it_is_the_class_activation_map():
    model, net, preprocess = build("shufflenet_v2_x0_5", 224)
    maps = []
    model.conv5.register_forward_hook(lambda _, __, output: maps.append(output))
    x = torch.randn(4, 3, 224, 224)
    classes = model(x).argmax(1)
    explainer = make_explainer(model, net, preprocess)
    assert explainer.method == "HiResCAM at stage 4, 7 × 7 cells"
    heat = explainer(x, classes)
    expected = torch.einsum("nc,nchw->nhw", model.fc.weight[classes], maps[-1]).relu()  # Zhou et al. 2016
    expected /= expected.amax((1, 2), keepdim=True)
    assert (expected > 0.1).sum() > 4
    torch.testing.assert_close(heat[:, ::32, ::32], expected, atol=1e-5, rtol=1e-4)  # the cells' centres


def test_the_cell_of_a_token_is_its_patch():
    torch.manual_seed(0)
    model = VisionTransformer(48, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    nn.init.zeros_(model.conv_proj.weight)  # all patches are the same but for their position
    nn.init.zeros_(model.encoder.pos_embedding)
    model.encoder.pos_embedding.data[0, 1 + 2 * 6 + 4] = torch.randn(16)  # third row, fifth column
    explainer = Explainer(model, architectures.find("vit_b_16"), plain(48))
    assert explainer.method == "HiResCAM at stage 2, 6 × 6 tokens"
    found = 0
    for label in range(3):
        cells = explainer(torch.zeros(1, 3, 48, 48), torch.tensor([label]))[0, 4::8, 4::8]  # (6, 6)
        different = (cells - cells.median()).abs()
        if different.max() > 0.1:
            assert different.argmax() == 2 * 6 + 4
            found += 1
    assert found >= 1


def check(name: str, side: int, **settings) -> None:
    model, net, preprocess = build(name, side, **settings)
    explainer = make_explainer(model, net, preprocess)
    x, classes = torch.randn(3, net.in_channels, side, side), torch.tensor([0, 1, 2])
    heat = explainer(x, classes)
    assert heat.shape == (3, side, side)
    assert heat.dtype == torch.float32
    assert 0 <= heat.min() <= heat.max() <= 1
    assert set(heat.amax((1, 2)).tolist()) in ({1.0}, {0.0, 1.0})
    assert heat.std() > 0.01
    assert torch.equal(explainer(x, classes), heat), "deterministic"
    with torch.inference_mode():
        assert torch.equal(explainer(x * 1, classes * 1), heat), "in inference mode too"
    assert not model.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("name", QUICK)
def test_every_head_has_maps_and_the_model_is_left_as_it_was(name, settings):
    check(name, 64, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), OTHERS_WITH_HEADS)
def test_every_family_has_maps(name, settings):
    check(name, {"maxvit_t": 224, "inception_v3": 128}.get(name, 64), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_has_a_layer_that_covers_its_image(name):
    model, preprocess = build_empty(name)
    layer = Explainer(model, architectures.find(name), preprocess).layer
    assert layer.side >= CELLS
    assert layer.side * layer.step == pytest.approx(preprocess.crop, rel=0.2)
    assert 0 <= layer.first <= 1.5 * layer.step
    last = layer.first + (layer.side - 1) * layer.step
    assert preprocess.crop - 1.5 * layer.step < last < preprocess.crop


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "swin_t"])
def test_captum_finds_the_same(name):
    attr = pytest.importorskip("captum.attr")
    model, net, preprocess = build(name, 224)
    explainer = make_explainer(model, net, preprocess)
    layer, x = explainer.layer, torch.randn(4, 3, 224, 224, requires_grad=True)
    classes = model(x).argmax(1)
    module = model.permute if name == "swin_t" else model.get_submodule(layer.path)  # (N, C, h, w)
    expected = attr.LayerGradientXActivation(model, module).attribute(x, classes).sum(1).relu()  # (N, h, w)
    start = int(layer.first)  # a cell's centre is on a pixel, or between two
    centres = explainer(x, classes)[:, start :: layer.step, start :: layer.step][:, : layer.side, : layer.side]
    expected = (expected / expected.amax((1, 2), keepdim=True)).detach()
    assert torch.corrcoef(torch.stack([centres.flatten(), expected.flatten()]))[0, 1] > 0.99


@pytest.mark.slow
def test_a_trained_model_looks_at_the_beetle_and_not_at_the_ground(tmp_path):
    import train as script

    reset_accelerate()
    flags = ["--recipe", "feature_extractor", "--tracker", "none", "--output", str(tmp_path / "run")]
    assert script.main([*flags, "--cache-dir", str(tmp_path / "cache")]) == 0
    opened = model_folder.load(tmp_path / "run")
    explainer, transform = (
        make_explainer(opened.model, opened.net, opened.preprocess),
        make_transform(opened.preprocess),
    )
    paths = sorted(Path(starter.path("starter")).glob("val/*/*"))[::4]
    assert len(paths) == 50
    halves = {True: [], False: []}
    for path in paths:
        x = transform(path)  # (1, 3, 64, 64)
        edge = torch.cat([x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]], -1).mean(-1)
        ground = edge[..., None, None].expand_as(x)
        for left in (True, False):
            picture = torch.cat([x, ground] if left else [ground, x], 3)  # (1, 3, 64, 128)
            heat = explainer(picture, opened.model(picture).argmax(1))[0]
            assert heat.any(), path
            halves[left].append(((heat[:, :64] if left else heat[:, 64:]).sum() / heat.sum()).item())
    for shares in halves.values():
        assert len(shares) == 50
        assert np.mean(shares) > 0.7
        assert np.mean(np.array(shares) > 0.5) > 0.85


def test_a_class_that_nothing_speaks_for_has_a_map_of_zeros():
    model, family = windows((4, 4, 0), (2, 2, 0))
    heat = Explainer(model, family, plain(64))(-torch.ones(1, 3, 64, 64), torch.tensor([0]))
    assert isinstance(heat, Tensor)
    assert not heat.any()
