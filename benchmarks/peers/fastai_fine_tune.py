"""fastai's `vision_learner` and `fine_tune` at their defaults, with the same pretrained weights.

One epoch for the head, then ten for all layers: `fine_tune` has no default number, and ten is what the other methods
take. Batches of 64. Presizing is that of fastai's book, chapter 5: `Resize(460)` for each image, then
`aug_transforms(size=224, min_scale=0.75)` for each batch; 460 is scaled with the size. The last epoch is scored, as
fastai keeps it.
"""

import warnings

import torch
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    ImageBlock,
    Resize,
    accuracy,
    aug_transforms,
    default_split,
    imagenet_stats,
    model_meta,
    set_seed,
    vision_learner,
)
from pandas import DataFrame, concat
from torchvision import models

from benchmarks.peers import task

EPOCHS, BATCH, PRESIZE = 10, 64, 460 / 224


def main() -> None:
    given = task.parser(__doc__).parse_args()
    set_seed(given.seed, reproducible=True)
    classes, samples = task.read(given.data)
    frames = {
        split: DataFrame([(str(path), classes[label], split == "val") for path, label in found],
                         columns=["path", "label", "is_valid"])
        for split, found in samples.items()
    }  # fmt: skip
    block = DataBlock(
        (ImageBlock, CategoryBlock(vocab=classes)),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=ColSplitter(),
        item_tfms=Resize(round(PRESIZE * given.size)),
        batch_tfms=aug_transforms(size=given.size, min_scale=0.75),
    )
    seen = concat([frames["train"], frames["val"]], ignore_index=True)
    images = block.dataloaders(seen, bs=min(BATCH, len(samples["train"])), num_workers=given.workers)

    def backbone(**_: object) -> torch.nn.Module:
        return task.pretrained(given)

    # fastai looks a network's cut, its layer groups and its normalisation up by the function that makes it. It knows
    # SqueezeNet; the other two are cut before their last layer, and split into body and head.
    unknown = {"cut": -1, "split": default_split, "stats": imagenet_stats}
    model_meta[backbone] = model_meta.get(getattr(models, given.model), unknown)
    learner = vision_learner(images, backbone, metrics=accuracy)
    with learner.no_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner.fine_tune(EPOCHS)
        loaders = {"val": images.valid, "test": images.test_dl(frames["test"], with_labels=True)}
        scores = {f"{split}_accuracy": learner.validate(dl=loader)[1] for split, loader in loaders.items()}
    task.report(scores, "fastai")


if __name__ == "__main__":
    main()
