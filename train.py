"""Fine-tune an image classifier.

    accelerate launch train.py --recipe feature_extractor                 # built-in images and weights, no network
    accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18

It reads straight down: settings, network and images, plan, optimizer, loop.
"""

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

from finetune import archs, imagesets, recipes, reporting
from finetune.errors import STOPPED, exit_code


def main(arguments: list[str]) -> int:
    """Train as the command line says; the exit code."""
    # ---- settings: what a user can get wrong is told before torch is imported ----------------------------------------
    began = time.perf_counter()
    recipe = recipes.from_command_line(arguments)
    net, images, training, run = recipe.net, recipe.images, recipe.training, recipe.run
    family, output = archs.find(net.model), reporting.new_folder(recipe)
    imageset = imagesets.read(images, net.in_channels, run.seed)
    classes = imageset.classes

    import torch

    from finetune import (
        artifact,
        data,
        ema,
        feeds,
        freezing,
        groups,
        hardware,
        loss,
        plan,
        schedule,
        surgery,
        terminal,
        tracking,
    )
    from finetune.evaluate import evaluate

    accelerator, precision = hardware.make_accelerator(run.precision, run.tracker, output)
    main_process, device, processes = accelerator.is_main_process, accelerator.device, accelerator.num_processes
    console = terminal.make_console(main_process)

    # ---- network and images ------------------------------------------------------------------------------------------
    torch.manual_seed(run.seed)
    with accelerator.local_main_process_first():  # one download for all processes
        model, preprocess, stages = surgery.build(net, len(classes), empty=run.plan)
    rates = recipes.rates(recipe, len(stages))
    pairs, frozen = freezing.trains_batchnorm(model, stages, rates), freezing.frozen_epochs(rates)
    loaders = data.make_loaders(imageset.splits, preprocess, recipe, accelerator, pairs, frozen)
    train_count, updates_per_epoch = len(loaders["train"].dataset), loaders["train"].batch_sampler.updates

    # ---- plan --------------------------------------------------------------------------------------------------------
    whole, phases = plan.make(recipe, model, stages, rates, preprocess, imageset, loaders, accelerator, precision)
    console.print(plan.as_json(whole) if run.json else plan.show(whole), soft_wrap=run.json)
    if run.plan:
        return 0
    tracker = reporting.begin(recipe, output, classes, accelerator, console)
    if run.preview:
        return reporting.preview(output, loaders, classes, console)

    # ---- optimizer ---------------------------------------------------------------------------------------------------
    model.to(device, memory_format=torch.channels_last if run.channels_last else torch.contiguous_format)
    optimizer = accelerator.prepare(groups.make_optimizer(model, stages, rates, training))
    average, kept = ema.make_average(model, training.ema)
    lr_factor = schedule.make_schedule(training, updates_per_epoch)
    criterion = loss.make_criterion(training, imageset.splits["train"].labels, len(classes), family.aux_weight, device)
    torch.manual_seed(data.mixed(run.seed, accelerator.process_index))  # dropout
    stop, shown = terminal.StopRequest(), partial(terminal.progress, console=console)
    source = feeds.Feeds(phases, recipe, model, kept, preprocess, loaders, accelerator, shown)

    # ---- loop --------------------------------------------------------------------------------------------------------
    history, best, best_scores, stopped = [], None, None, False
    for epoch in range(training.epochs):
        epoch_began = time.perf_counter()
        freezing.set_phase(model, stages, rates, epoch)
        train, val = source.at(epoch)  # images to the net, or activations to what follows the frozen part
        train.loader.batch_sampler.epoch = epoch
        sums = torch.zeros(2, device=device)  # loss, right answers
        for number, batch in enumerate(shown(train.loader, f"epoch {epoch + 1}/{training.epochs}")):
            last = (number + 1) % training.accumulate == 0  # part of its update
            x = data.to_input(batch.images, train.preprocess, device, run.channels_last)  # (N, C, H, W)
            labels, shares, others, mix = batch.targets(device)  # (N,)
            with nullcontext() if last else accelerator.no_sync(train.net):
                logits, losses = criterion(train.net(x), labels, others, mix)
                # The shares of a global batch add up to 1 over all processes, whose gradients DDP averages.
                accelerator.backward((losses * shares).sum() * processes)
            sums += (torch.stack([losses.detach(), logits.argmax(1) == labels]) * (shares > 0)).sum(1)
            if not last:
                continue
            if training.clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), training.clip_norm)
            update = epoch * updates_per_epoch + number // training.accumulate
            groups.set_rates(optimizer, training.lr * lr_factor(update, history))
            optimizer.step()
            optimizer.zero_grad()
            if average:
                average.update_parameters(model)
            if stopped := stop.agreed(accelerator):
                break
        if stopped:
            break
        speed = train_count / (time.perf_counter() - epoch_began)
        means = (accelerator.reduce(sums) / train_count).tolist()
        scores = evaluate(val.net, val.loader, val.preprocess, run.channels_last, accelerator)
        line = tracking.epoch_record(epoch, updates_per_epoch, optimizer, stages, means, scores, speed, epoch_began)
        history.append(line)
        if improved := tracking.better(line, best, training.best_by):
            best, best_scores = line, scores
        if main_process:
            tracking.append_json(output / "metrics.jsonl", line)
            tracker.log_epoch(line)
            if improved:
                artifact.save(output / "model", kept, asdict(net), classes, preprocess, line)
        console.print(terminal.epoch_line(line, training.epochs, improved))
        if schedule.should_stop(history, training):
            break

    # ---- end ---------------------------------------------------------------------------------------------------------
    if best is None:
        tracker.finish()
        console.print(f"Stopped before the first epoch ended: {output} holds no model.")
        return STOPPED
    result = tracking.summary(best, history, training.epochs, loaders, accelerator)
    if "test" in loaders:
        accelerator.wait_for_everyone()  # the main process has written the best weights
        artifact.load_weights(output / "model", kept)
        result["test_accuracy"] = evaluate(kept, loaders["test"], preprocess, run.channels_last, accelerator).accuracy
    if main_process:
        reporting.end(output, result, history, best_scores, loaders, classes, tracker, console, began, stopped)
    tracker.finish()
    return STOPPED if stopped else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
