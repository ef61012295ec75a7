"""Fine-tune an image classifier.

accelerate launch train.py --recipe feature_extractor                 # built-in images and weights, no network
accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18
python train.py --help
"""

import math
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from finetune import archs, imagesets, recipes
from finetune.errors import STOPPED, UserError, exit_code


def main(arguments: list[str]) -> int:
    """Train as the command line says; the exit code."""
    # ---- settings: what a user can get wrong is told before torch is imported ----------------------------------------
    began = time.perf_counter()
    recipe = recipes.from_command_line(arguments)
    net, images, training, run = recipe.net, recipe.images, recipe.training, recipe.run
    output = run.output or Path("runs") / f"{recipe.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists already. Name a new folder, or remove it.")
    family = archs.find(net.model)
    imageset = imagesets.read(images, net.in_channels, run.seed)
    classes = imageset.classes

    import torch

    from finetune import artifact, data, freezing, groups, hardware, plan, schedule, surgery, terminal, tracking
    from finetune.evaluate import evaluate
    from finetune.loss import cross_entropy

    tracking.check_tracker(run.tracker)
    accelerator, precision = hardware.make_accelerator(run.precision, run.tracker, output)
    main_process, device, processes = accelerator.is_main_process, accelerator.device, accelerator.num_processes
    console = terminal.make_console(main_process)

    # ---- network and images ------------------------------------------------------------------------------------------
    torch.manual_seed(run.seed)
    with accelerator.local_main_process_first():  # one download for all processes
        model, preprocess, stages = surgery.build(net, len(classes))
    rates = recipes.rates(recipe, len(stages))
    freezing.set_phase(model, stages, rates, epoch=0)
    workers = hardware.worker_count(images.workers, device)
    loaders = data.make_loaders(imageset.splits, preprocess, images, training, run.seed, workers, accelerator)
    train_count, updates_per_epoch = len(loaders["train"].dataset), len(loaders["train"])

    # ---- plan --------------------------------------------------------------------------------------------------------
    console.print(plan.make(
        recipe, model, stages, rates, preprocess, imageset, updates_per_epoch, accelerator, precision, workers
    ))  # fmt: skip
    if run.plan:
        return 0
    settings = tracking.config(recipe, classes=classes, num_processes=processes, device=device.type)
    accelerator.wait_for_everyone()
    if main_process:
        (output / "plots").mkdir(parents=True)
        tracking.write_json(output / "config.json", settings)
    tracker = tracking.Tracker(accelerator, recipe, settings, output)
    console.print(f"\n{tracker.state}\nThe run's folder is {output}\n", soft_wrap=True)

    # ---- optimizer ---------------------------------------------------------------------------------------------------
    model.to(device, memory_format=torch.channels_last if run.channels_last else torch.contiguous_format)
    optimizer = groups.make_optimizer(model, stages, rates, training)
    lr_factor = schedule.make_schedule(training, updates_per_epoch)
    bare = model
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(data.mixed(run.seed, accelerator.process_index))  # dropout
    stop = terminal.StopRequest()

    # ---- loop --------------------------------------------------------------------------------------------------------
    history, best, best_scores, stopped = [], None, None, False
    for epoch in range(training.epochs):
        epoch_began = time.perf_counter()
        model.train()
        freezing.set_phase(bare, stages, rates, epoch)
        loaders["train"].batch_sampler.epoch = epoch
        sums = torch.zeros(2, device=device)  # loss, right answers
        shown = terminal.progress(loaders["train"], f"epoch {epoch + 1}/{training.epochs}", console)
        for update, batch in enumerate(shown, start=epoch * updates_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = training.lr * group["scale"] * lr_factor(update)
            x = data.to_input(batch.images, preprocess, device, run.channels_last)  # (N, C, H, W)
            labels, shares = batch.labels.to(device), batch.shares.to(device)  # (N,)
            logits, losses = cross_entropy(model(x), labels, training.label_smoothing, family.aux_weight)
            # The shares of a global batch add up to 1 over all processes, whose gradients DDP averages.
            accelerator.backward((losses * shares).sum() * processes)
            if training.clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), training.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            sums += (torch.stack([losses.detach(), logits.argmax(1) == labels]) * (shares > 0)).sum(1)
            if stopped := stop.agreed(accelerator):
                break
        if stopped:
            break
        train_loss, train_accuracy = (accelerator.reduce(sums) / train_count).tolist()
        train_seconds = time.perf_counter() - epoch_began
        if not math.isfinite(train_loss):
            raise UserError(f"the loss is {train_loss} in epoch {epoch + 1}. Lower --lr, or set --clip-norm 1.")

        scores = evaluate(model, loaders["val"], preprocess, run.channels_last, accelerator)
        line = {
            "epoch": epoch + 1, "step": (epoch + 1) * updates_per_epoch,
            "lr": {plan.depth_name(group["depth"], len(stages)): group["lr"] for group in optimizer.param_groups},
            "train_loss": train_loss, "train_accuracy": train_accuracy,
            "val_loss": scores.loss, "val_accuracy": scores.accuracy, "val_top5": scores.top5,
            "images_per_second": train_count / train_seconds, "seconds": time.perf_counter() - epoch_began,
        }  # fmt: skip
        history.append(line)
        if improved := best is None or (scores.accuracy, -scores.loss) > (best["val_accuracy"], -best["val_loss"]):
            best, best_scores = line, scores
        if main_process:
            tracking.append_json(output / "metrics.jsonl", line)
            tracker.log_epoch(line)
            if improved:
                score = {name: line[name] for name in ("epoch", "val_accuracy", "val_loss")}
                artifact.save(output / "model", bare, asdict(net), classes, preprocess, score)
        console.print(terminal.epoch_line(line, training.epochs, improved))

    # ---- end ---------------------------------------------------------------------------------------------------------
    if best is None:
        tracker.finish()
        console.print(f"Stopped before the first epoch ended: {output} holds no model.")
        return STOPPED
    result = tracking.summary(best, len(history), stopped, loaders, accelerator)
    if "test" in loaders:
        accelerator.wait_for_everyone()  # the main process has written the best weights
        artifact.load_weights(output / "model", bare)
        result["test_accuracy"] = evaluate(model, loaders["test"], preprocess, run.channels_last, accelerator).accuracy
    if main_process:
        from finetune import plots

        plots.draw_all(output / "plots", history, best, loaders, best_scores, classes)
        result["total_seconds"] = time.perf_counter() - began
        tracking.write_json(output / "summary.json", result)
        tracker.summarize(result)
        console.print(terminal.ending(result, training.epochs, output), soft_wrap=True)
    tracker.finish()
    return STOPPED if stopped else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
