"""int8: which weights keep 8 bits, which layers stay float32, and that the families stay close to float32."""

from types import SimpleNamespace

import pytest
import torch
from support import write_model

from finetune.inference import exports
from finetune.inference.examples import Examples
from finetune.inference.export_forms import PACKAGES, Form
from finetune.inference.exports import comparison, quantization
from finetune.models import model_folder


def graph(*shapes_and_groups):
    """A chain of convolutions with an activation after each, as in an ONNX file."""
    nodes, tensors = [], []
    for k, (shape, groups) in enumerate(shapes_and_groups):
        attributes = [SimpleNamespace(name="group", i=groups)]
        nodes.append(SimpleNamespace(name=f"conv{k}", op_type="Conv", input=["x", f"weight{k}"], attribute=attributes))
        nodes.append(SimpleNamespace(name=f"clip{k}", op_type="Clip", input=["x"], attribute=[]))
        tensors.append(SimpleNamespace(name=f"weight{k}", dims=shape))
    return SimpleNamespace(node=nodes, initializer=tensors)


def test_a_stem_before_a_depthwise_convolution_stays_float32():
    mobile = graph(((8, 3, 3, 3), 1), ((8, 1, 3, 3), 8), ((16, 8, 1, 1), 1), ((16, 1, 3, 3), 16))
    assert quantization.depthwise_weights(mobile) == {"weight1", "weight3"}
    assert quantization.float_stem(mobile) == ["conv0", "clip0", "conv1"]
    assert quantization.float_stem(graph(((8, 3, 3, 3), 1), ((8, 8, 3, 3), 1), ((8, 1, 3, 3), 8))) == []
    grouped = graph(((8, 3, 3, 3), 1), ((8, 4, 3, 3), 2))
    assert quantization.depthwise_weights(grouped) == set()
    assert quantization.float_stem(graph(((8, 3, 3, 3), 1))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["squeezenet1_0", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet18", "vit_b_32", "swin_t"],
)
def test_the_families_in_int8_are_small_and_close_to_float32(tmp_path, model):
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    import onnx

    write_model(tmp_path / "model", model=model, image_size=64)
    opened = model_folder.load(tmp_path)
    images = list(torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    given, others = (Examples(opened, part, None, "images") for part in (images[:16], images[16:]))
    form, path = Form("onnx", "int8"), tmp_path / "m.onnx"
    found = exports.write(opened, form, path, comparison.same_accuracy(opened, others, 100), given.tensor(16))
    assert found.difference < 0.1
    weights = (tmp_path / "model" / model_folder.WEIGHTS).stat().st_size
    assert path.stat().st_size < 0.4 * weights
    proto = onnx.load(path)
    assert "QLinearConv" not in {node.op_type for node in proto.graph.node}, "pairs, which every runtime can read"
    run = exports.read(opened, form, path)
    for count in (1, 7):
        assert run(torch.randn(count, 3, 64, 64)).shape == (count, 3)
