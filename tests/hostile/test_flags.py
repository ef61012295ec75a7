"""Numbers and names that no flag takes."""

import pytest
from hostile.harness import Case, check, params, train

from finetune import recipes
from finetune.config.settings import SECTIONS, Recipe
from finetune.errors import UserError

HUGE = [
    10**9 + 1,
    10**12,
    10**18,
    2**63,
    10**30,
    -(10**18),
    10**400,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    -1e-9,
]


def numbers() -> list[tuple[str, object]]:
    """Each setting that is a number, with its type."""
    from typing import get_type_hints

    found = []
    for section in SECTIONS:
        kind = type(getattr(Recipe(), section))
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if any(one in str(hint) for one in ("'int'", "'float'", "Bounds")):
                found.append((name, hint))
    return found


def test_no_number_is_without_bounds():
    seen = 0
    for name, _ in numbers():
        for value in HUGE:
            if name == "seed" and value in (10**9 + 1, 10**12, 10**18):
                continue
            with pytest.raises(UserError) as caught:
                recipes.from_settings("finetune", {name: value})
            assert f"--{name.replace('_', '-')} " in str(caught.value)
            seen += 1
    assert seen >= 480


def flag_case(words: str, *says: str) -> Case:
    return Case(
        words, lambda place: train("--data", place.photos, *words.split(), "--plan"), says or (words.split()[0],)
    )


FLAGS = [
    flag_case(words, *words.split()[:1])
    for words in (
        "--epochs 1000000000",
        "--epochs -1",
        "--epochs ten",
        "--epochs 1e3",
        "--epochs 0x10",
        "--epochs ''",
        "--epochs 1.5",
        "--accumulate 1000000000",
        "--in-channels 1000000000",
        "--in-channels 2",
        "--pool-size 1000000000",
        "--image-size 1000000000",
        "--image-size 0",
        "--image-size 7",
        "--batch-size 1000000000000",
        "--batch-size 0",
        "--lr 1e30",
        "--lr 0",
        "--lr -1",
        "--lr nan",
        "--lr inf",
        "--lr 1e400",
        "--mixup 1e-320",
        "--cutmix 1e-320",
        "--mixup nan",
        "--mixup 1e300",
        "--checkpoint-every nanm",
        "--checkpoint-every nan",
        "--checkpoint-every -5",
        "--checkpoint-every 1e308m",
        "--checkpoint-every 10h",
        "--checkpoint-every infm",
        "--seed -1",
        "--seed 9223372036854775808",
        "--workers -2",
        "--workers 100000",
        "--val-fraction 0",
        "--val-fraction 1",
        "--val-fraction nan",
        "--folds 1",
        "--folds 1000000000",
        "--fold 3",
        "--views 1000000000",
        "--ema 1",
        "--ema nan",
        "--label-smoothing 1",
        "--warmup 2",
        "--clip-norm -1",
        "--weight-decay 1e30",
        "--minutes 0",
        "--minutes inf",
        "--cache-gb nan",
        "--cache-gb -1",
        "--hidden 0 --head mlp",
        "--hidden 1000000000 --head mlp",
        "--dropout 1 --head mlp",
        "--keep-checkpoints 0",
        "--keep-checkpoints 1000000000",
        "--decay 0",
        "--decay 2",
        "--layers 0 --recipe last_layers",
        "--crop-scale 0",
        "--erase 2",
        "--momentum 1",
        "--step-factor 0",
        "--step-epochs 0",
        "--patience -1",
        "--log-every -1",
        "--train-depths nothing",
        "--optimizer lion",
        "--precision fp64",
        "--tracker nothing",
        "--schedule never",
        "--no-such-flag",
        "--lr",
        "--best-by luck",
        "--l2 0",
        "--min-delta nan",
        "--eval-batch-size 0",
    )
]
FLAGS.append(Case("--recipe unknown", lambda place: ["train", "--recipe", "../../etc"], ("unknown recipe",)))
OPTIONS = [
    Case(
        " ".join(words),
        lambda place, words=words: [
            words[0],
            place.run,
            *({"predict": [place.photos], "embed": [place.photos, "--output", "x.npz"]}.get(words[0], [])),
            *words[1:],
        ],
        (words[1],),
    )
    for words in (
        *(
            ("predict", flag, value)
            for flag, value in (
                ("--topk", "0"),
                ("--topk", "1000000000000"),
                ("--batch-size", "0"),
                ("--batch-size", "1000000000"),
                ("--workers", "100000"),
                ("--workers", "-5"),
                ("--abstain", "nan"),
                ("--abstain", "2"),
                ("--precision", "fp8"),
            )
        ),
        *(
            ("evaluate", flag, value)
            for flag, value in (
                ("--batch-size", "1000000000"),
                ("--workers", "-5"),
                ("--abstain", "nan"),
                ("--split", "dev"),
            )
        ),
        *(("embed", flag, value) for flag, value in (("--batch-size", "1000000000"), ("--workers", "-5"))),
        *(
            ("report", flag, value)
            for flag, value in (("--cell-images", "-1"), ("--image-mb", "nan"), ("--image-mb", "1000"))
        ),
        *(
            ("bench", flag, value)
            for flag, value in (("--turns", "1"), ("--turns", "1000000000"), ("--batch-sizes", "1000000000"))
        ),
        *(("compare", flag, value) for flag, value in (("--sort", "size"),)),
    )
]
EXPORTS = [
    Case(
        f"export {flag} {value}",
        lambda place, flag=flag, value=value: ["export", place.run, "--format", "onnx", flag, value],
        (flag,),
    )
    for flag, value in (
        ("--opset", "1000000"),
        ("--opset", "-1"),
        ("--tolerance", "nan"),
        ("--calibration-images", "0"),
        ("--format", "zip"),
    )
]
# The launcher's and the cluster's variables.
LAUNCH = [
    Case(
        f"{name}={value}",
        lambda place: train("--data", place.photos, *(["--precision", "auto"])),
        (says,),
        2,
        {name: value},
    )
    for name, value, says in (
        ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16"),
        ("ACCELERATE_MIXED_PRECISION", "none", "none"),
        ("WORLD_SIZE", "two", "WORLD_SIZE"),
        ("WORLD_SIZE", "", "WORLD_SIZE"),
        ("WORLD_SIZE", "-1", "WORLD_SIZE"),
        ("LOCAL_WORLD_SIZE", "two", "LOCAL_WORLD_SIZE"),
        ("SLURM_STEP_NUM_TASKS", "two", "SLURM_STEP_NUM_TASKS"),
        ("SLURM_STEP_NUM_TASKS", "2", "2 processes were launched"),
        ("OMPI_COMM_WORLD_SIZE", "2", "accelerate launch"),
        ("RANK", "first", "RANK"),
        ("LOCAL_RANK", "first", "LOCAL_RANK"),
    )
]
CASES = [*FLAGS, *OPTIONS, *EXPORTS, *LAUNCH]


@pytest.mark.parametrize("case", params(CASES, 40))
def test_a_flag_that_cannot_be_is_named(case, place):
    check(case, place)
