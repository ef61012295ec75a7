"""Export a model as a file that works without this project, and compare the file with the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import architectures, pretrained
from finetune.models.architectures import Preprocess
from finetune.models.model_folder import Model
from finetune.models.weights import with_versions

SUFFIXES = {"state-dict": ".pth", "torch-export": ".pt2", "onnx": ".onnx"}
LIMIT, HALF_LIMIT = 1e-4, 1e-2  # largest difference allowed: in a logit; with float16 weights, in a probability
ONE_FILE = 1_900_000_000  # bytes of weights inside the .onnx file; larger weights are a second file


class Half(nn.Module):
    """A network that computes in float16, from float32 to float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.half()).float()


def describe(opened: Model, kind: str, half: bool, opset: int) -> dict[str, Any]:
    """The exported file's metadata: input, output, classes, preprocessing, score."""
    channels, side = len(opened.preprocess.mean), opened.preprocess.crop
    return {
        "model": opened.net.model,
        "format": kind,
        **({"opset": opset} if kind == "onnx" else {}),
        "precision": "float16" if half else "float32",
        "input": f"images: float32 (N, {channels}, {side}, {side}), any N; pixels in [0, 1]"
        f"{', red green blue' if channels == 3 else ''}, then normalised with mean and std",
        "output": "logits: float32 (N, classes); softmax makes them probabilities",
        "classes": opened.classes,
        "preprocess": asdict(opened.preprocess),
        "score": opened.metadata.score,
    }


def write(opened: Model, kind: str, path: Path, images: Tensor, half: bool, opset: int) -> float:
    """Export the model to `path`, and its metadata to `path`.json; the largest difference from the model.

    The file is read back and compared with the model on `images`, normalised inputs (N, C, H, W): on all of them, and
    on the first alone. Raises `UserError`, and leaves no file, where the difference is too large or the format does not
    take the architecture.
    """
    torch.manual_seed(0)
    with torch.inference_mode():
        expected = opened.model(images)  # (N, classes)
    about = describe(opened, kind, half, opset)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as temporary:
        exported = WRITERS[kind](opened, Path(temporary) / path.name, images, half, about)
        on_all, on_one = exported(images), exported(images[:1])
        difference = max(_difference(on_all, expected, half), _difference(on_one, expected[:1], half))
        limit, unit = (HALF_LIMIT, "probability") if half else (LIMIT, "logit")
        if not difference <= limit:
            raise UserError(
                f"the exported {opened.net.model} differs from the model by {difference:.1e} in a {unit} (at most "
                f"{limit:g} is allowed), so it was not written. Try another --format."
            )
        (Path(temporary) / f"{path.name}.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        for file in sorted(Path(temporary).iterdir()):
            file.rename(path.parent / file.name)
    return difference


def _difference(found: Tensor, expected: Tensor, half: bool) -> float:
    if half:
        found, expected = found.softmax(1), expected.softmax(1)
    return (found - expected).abs().max().item()


def _state_dict(opened: Model, path: Path, images: Tensor, half: bool, about: dict[str, Any]) -> Callable:
    state = opened.model.state_dict()
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(dict(state), path)
    read = torch.load(path, "cpu", weights_only=True)
    read = {key: value.float() if value.is_floating_point() else value for key, value in read.items()}
    if opened.folder is None:
        return torch.inference_mode()(pretrained.from_state(opened.net.model, read))
    model = plain_torchvision(opened.net, opened.preprocess, read)
    return torch.inference_mode()(model)


def plain_torchvision(net: Net, preprocess: Preprocess, state: dict[str, Tensor]) -> nn.Module:
    """torchvision's own model with its last layer replaced, loaded with a state dict; none of this project's modules.

    Raises `UserError` for a head that is more than a last layer.
    """
    family, side = architectures.find(net.model), preprocess.crop
    if net.head == "concat_pool" or net.pool_size is not None or f"{family.head}.weight" not in state:
        part = f"the {net.head} head" + (f" with --pool-size {net.pool_size}" if net.pool_size else "")
        raise UserError(
            f"{part} is more than a last layer: torchvision's {net.model} cannot load its state dict. "
            f"Use --format torch-export or onnx."
        )
    options = dict(family.options) | (dict(family.pretrained_options) if net.weights != "none" else {})
    if family.aux:
        options["init_weights"] = False
    if family.size_argument:
        options[family.size_argument] = side if family.size_argument == "image_size" else (side, side)
    model = torchvision.models.get_model(net.model, weights=None, **options)
    for path in (family.head, *family.aux):
        classes, *width = state[f"{path}.weight"].shape
        layer = nn.Conv2d(width[0], classes, 1) if len(width) > 1 else nn.Linear(width[0], classes)
        model.set_submodule(path, layer)
    if family.after_head:
        model.set_submodule(family.after_head, nn.Identity())
    if net.in_channels != 3:
        first = model.get_submodule(family.first)
        first.in_channels, first.weight = net.in_channels, nn.Parameter(state[f"{family.first}.weight"])
        if hasattr(model, "transform_input"):
            model.transform_input = False
    model.load_state_dict(with_versions(model, state), strict=True)
    return model.eval()


def _torch_export(opened: Model, path: Path, images: Tensor, half: bool, about: dict[str, Any]) -> Callable:
    program = _traced(opened, images, half)
    torch.export.save(program, path, extra_files={"model.json": json.dumps(about)})
    return torch.no_grad()(torch.export.load(path).module())


def _onnx(opened: Model, path: Path, images: Tensor, half: bool, about: dict[str, Any]) -> Callable:
    import onnx
    import onnxruntime

    program = _traced(opened, images, half)
    size = sum(tensor.numel() * tensor.element_size() for tensor in opened.model.state_dict().values())
    try:
        with redirect_stdout(StringIO()):  # the exporter's own progress
            written = torch.onnx.export(
                program, dynamo=True, opset_version=about["opset"], input_names=["images"], output_names=["logits"],
                verbose=False,
            )  # fmt: skip
        written.save(path, external_data=size > ONE_FILE)
    except Exception as error:
        raise UserError(f"{opened.net.model} cannot be written as ONNX: {_first_line(error)}") from error
    proto = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(proto, {"classes": json.dumps(about["classes"]), "about": json.dumps(about)})
    onnx.save(proto, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.contiguous().numpy()})[0])


def _traced(opened: Model, images: Tensor, half: bool) -> torch.export.ExportedProgram:
    model = Half(opened.model) if half else opened.model
    pair = (torch.cat([images, images])[:2].contiguous(),)
    try:
        return _trace(model, pair)
    except Exception as error:
        part = culprit(model, pair)
        where = f" because of its module {part}" if part else ""
        raise UserError(f"{opened.net.model} cannot be exported{where}: {_first_line(error)}") from error


def _trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim("batch")},))


def culprit(model: nn.Module, inputs: tuple[Tensor, ...], above: str = "") -> str:
    """The path and type of the innermost module that cannot be exported alone; empty where each can."""
    seen: dict[str, tuple[Tensor, ...]] = {}
    hooks = [
        child.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, args))
        for name, child in model.named_children()
    ]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    for name, args in seen.items():
        child, path = model.get_submodule(name), f"{above}.{name}".lstrip(".")
        if len(args) != 1 or not isinstance(args[0], Tensor):
            continue
        try:
            _trace(child, args)
        except Exception:
            return culprit(child, args, path) or f"{path} ({type(child).__name__})"
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


WRITERS = {"state-dict": _state_dict, "torch-export": _torch_export, "onnx": _onnx}
