"""Fine-tune an image classifier.

    accelerate launch train.py --recipe feature_extractor                 # built-in images and weights, no network
    accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18

It reads straight down: settings, network and images, plan, optimizer, loop.
"""

import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

from finetune import archs, entry, imagesets, launcher, recipes, reporting
from finetune.checks import period
from finetune.errors import STOPPED


def main(arguments: list[str]) -> int:
    """Train as the command line says; the exit code."""
    # ---- settings: what a user can get wrong is told before torch is imported ----------------------------------------
    began = time.perf_counter()
    launcher.end_with_parent()
    recipe = recipes.from_command_line(arguments)
    net, images, training, run = recipe.net, recipe.images, recipe.training, recipe.run
    family, output = archs.find(net.model), reporting.folder(recipe)
    charts = reporting.charts(recipe)
    imageset = imagesets.read(images, net.in_channels, run.seed)
    classes = imageset.classes

    with entry.imports():
        import torch

        from finetune import (
            artifact,
            checkpoint,
            data,
            ema,
            feeds,
            freezing,
            groups,
            hardware,
            loss,
            noise,
            plan,
            resume,
            schedule,
            signals,
            surgery,
            terminal,
            tracking,
        )
        from finetune.evaluate import evaluate
        from finetune.samples import to_input

    accelerator, precision = hardware.make_accelerator(run.precision, run.tracker, output)
    main_process, device, processes = accelerator.is_main_process, accelerator.device, accelerator.num_processes
    console = terminal.make_console(main_process)

    # ---- network and images ------------------------------------------------------------------------------------------
    settings = tracking.config(recipe, imageset, accelerator)
    found = resume.find(output, settings, accelerator) if run.resume else None
    torch.manual_seed(run.seed)
    with accelerator.local_main_process_first():  # one download for all processes
        model, preprocess, stages = surgery.build(net, len(classes), run.plan, found and found.preprocess)
    rates = recipes.rates(recipe, len(stages))
    pairs, start_frozen = freezing.trains_batchnorm(model, stages, rates), freezing.frozen_epochs(rates)
    loaders = data.make_loaders(imageset.splits, preprocess, recipe, accelerator, pairs, start_frozen)
    batches, train_count = loaders["train"].batch_sampler, len(loaders["train"].dataset)

    # ---- plan --------------------------------------------------------------------------------------------------------
    whole, caches = plan.make(recipe, model, stages, rates, preprocess, imageset, loaders, accelerator, precision)
    model = hardware.share_batchnorm(model, accelerator) if run.sync_bn else model  # takes no meta tensors
    console.print(plan.as_json(whole) if run.json else plan.show(whole), soft_wrap=run.json)
    if run.plan:
        return 0
    output, tracker = reporting.begin(recipe, output, settings, found, accelerator, console)
    if run.preview:
        return reporting.preview(output, loaders, classes, console)
    if run.lr_find:
        from finetune import lr_find  # late: it draws, and matplotlib would delay every run

        return lr_find.run(recipe, output, model, stages, rates, preprocess, loaders, classes, accelerator, console)

    # ---- optimizer, and all else that a checkpoint holds -------------------------------------------------------------
    model.to(device, memory_format=torch.channels_last if run.channels_last else torch.contiguous_format)
    optimizer = accelerator.prepare(groups.make_optimizer(model, stages, rates, training, family, accelerator.scaler))
    average, kept = ema.make_average(model, training.ema)
    lr_factor = schedule.make_schedule(training, batches.updates)
    criterion = loss.make_criterion(training, imageset.splits["train"].labels, len(classes), family.aux_weight, device)
    dropout = noise.Noise(model, run.seed)
    frozen = freezing.unchanging(model, stages, rates)
    about = {"settings": settings, "preprocess": asdict(preprocess)}
    checkpoints = checkpoint.Checkpoints(
        output / "checkpoints", run.keep_checkpoints, accelerator, model, optimizer, average, frozen, about
    )
    progress = checkpoints.load(found) if found else checkpoint.Progress(tracker=tracker.identity)
    if main_process and progress.best:  # what is there may be newer, or half renamed
        artifact.save(output / "model", checkpoints.best_state(), net, classes, preprocess, progress.best)
    began, history, best_scores, stopped = began - progress.seconds, progress.history, None, False
    requests = signals.Requests(accelerator, *period(run.checkpoint_every))
    shown = partial(terminal.progress, console=console)
    source = feeds.Feeds(caches, recipe, model, kept, preprocess, loaders, accelerator, shown, requests.stop)

    # ---- loop --------------------------------------------------------------------------------------------------------
    for epoch in range(progress.epoch, training.epochs):
        if schedule.should_stop(history, training):
            break
        done, epoch_began = progress.done, time.perf_counter() - progress.epoch_seconds
        sums = torch.tensor(progress.sums, dtype=hardware.widest(device), device=device)  # loss, right answers
        freezing.set_phase(model, stages, rates, epoch)
        batches.start_at(epoch, done - epoch * batches.updates)
        if (fed := source.at(epoch)) is None:
            stopped = True
            break
        feed, val = fed  # images to the net, or activations to what follows its frozen start
        for number, batch in enumerate(shown(feed.loader, f"epoch {epoch + 1}/{training.epochs}"), 1):
            last = number % training.accumulate == 0  # part of its update
            x = to_input(batch.images, feed.preprocess, device, run.channels_last)  # (N, C, H, W)
            labels, shares, others, mix = batch.targets(device)  # (N,)
            dropout.at(done, batch.places.to(device, non_blocking=True), batches.largest)
            with nullcontext() if last else accelerator.no_sync(feed.net):
                logits, losses = criterion(feed.net(x), labels, others, mix)
                # The shares of a global batch add up to 1 over all processes, whose gradients DDP averages.
                accelerator.backward((losses * shares).sum() * processes)
            sums += (torch.stack([losses.detach(), logits.argmax(1) == labels]) * (shares > 0)).sum(1, dtype=sums.dtype)
            if not last:
                continue
            tracker.log_update(done + 1, losses.detach(), shares, model)
            requests.share()
            if training.clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), training.clip_norm)
            groups.set_rates(optimizer, training.lr * lr_factor(done, history))
            optimizer.step()
            optimizer.zero_grad()
            ema.update(average, model)
            done += 1
            stopped, due = requests.agreed(done)
            if stopped:
                break
            if due:
                progress.move(epoch, done, sums, epoch_began, began)
                checkpoints.save(progress)
        speed = train_count / (time.perf_counter() - epoch_began)
        scores = None
        if not stopped:
            scores = evaluate(val.net, val.loader, val.preprocess, run.channels_last, accelerator, requests.stop)
        if scores is None:
            progress.move(epoch, done, sums, epoch_began, began)
            stopped = True
            break
        means = (accelerator.reduce(sums) / train_count).tolist()
        seconds = time.perf_counter() - epoch_began
        line = tracking.epoch_record(epoch, done, optimizer, stages, means, scores, speed, seconds)
        history.append(line)
        if improved := tracking.better(line, progress.best, training.best_by):
            progress.best, best_scores = line, scores
            checkpoints.keep_best()
        if main_process:
            tracking.append_json(output / "metrics.jsonl", line)
            tracker.log_epoch(line)
            if improved:
                artifact.save(output / "model", checkpoints.best_state(), net, classes, preprocess, line)
        console.print(terminal.epoch_line(line, training.epochs, improved))
        if warning := terminal.collapse(history, rates, len(scores.labels), pairs):
            console.print(warning, soft_wrap=True)
        progress.move(epoch + 1, done, torch.zeros_like(sums), time.perf_counter(), began)
        checkpoints.save(progress, optional=True)

    # ---- end ---------------------------------------------------------------------------------------------------------
    path = checkpoints.save(progress)  # before other weights are loaded: the last epoch's may have been left out
    scores = {"val": best_scores} if best_scores else {}  # a resumed run may not have seen its best epoch
    for name in ("val", "test"):
        if name in loaders and name not in scores and not stopped:
            kept.load_state_dict(checkpoints.best_state())
            scores[name] = evaluate(kept, loaders[name], preprocess, run.channels_last, accelerator, requests.stop)
            stopped = scores[name] is None
    if stopped:
        checkpoints.finish()
        reporting.stopped(output, path, requests.asked_by, accelerator, tracker, console)
        return STOPPED
    if main_process:
        progress.seconds = time.perf_counter() - began
        result = tracking.summary(progress, training.epochs, scores, loaders, accelerator)
        reporting.end(output, result, history, scores["val"], loaders, classes, tracker, console, charts, training)
    checkpoints.finish()
    tracker.finish()
    return 0


if __name__ == "__main__":
    entry.run(main)
