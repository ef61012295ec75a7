"""Fine-tune an image classifier.

    accelerate launch train.py --recipe feature_extractor                 # built-in images and weights, no network
    accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18

Reads straight down: settings, data and network, plan, optimizer, head, loop, end.
"""

from dataclasses import asdict
from functools import partial
from itertools import islice

from finetune import recipes
from finetune.config.bounds import period
from finetune.errors import STOPPED
from finetune.reporting import run_folder
from finetune.runtime import entry, launcher
from finetune.training.state import State, Stopwatch


def main(arguments: list[str]) -> int:
    """Train as the command line says. Returns the exit code."""
    # ---- settings: mistakes are reported before torch is imported, which takes seconds -------------------------------
    clock = Stopwatch()
    launcher.end_with_parent()
    recipe = recipes.from_command_line(arguments)

    from finetune.data import readers  # not at the top: NumPy and Pillow would slow --help down
    from finetune.reporting import cross_validation

    if recipe.images.folds and not recipe.images.fold and not recipe.run.plan:
        return cross_validation.run(recipe, arguments, main)
    training, run = recipe.training, recipe.run
    output = run_folder.choose(recipe)
    imageset = readers.read(recipe.images, recipe.net.in_channels, run.seed)
    classes, labels = imageset.classes, imageset.splits["train"].labels

    with entry.imports():
        import torch

        from finetune.data.loader import make_loaders
        from finetune.features import head
        from finetune.features.feed import Feeds
        from finetune.models import metadata, network
        from finetune.reporting import plan, records, results, startup, terminal
        from finetune.runtime import devices
        from finetune.runtime.progress import progress
        from finetune.training import ema, interpolation, resume, schedule, timing
        from finetune.training.calibration import fit_temperature
        from finetune.training.checkpoint import Checkpoints
        from finetune.training.evaluation import evaluate
        from finetune.training.interrupts import Interrupts, Stopped
        from finetune.training.param_groups import make_optimizer
        from finetune.training.step import TrainingStep, zero_sums

    resumed = resume.precision(output) if run.resume else None
    accelerator, precision = devices.make_accelerator(run.precision, run.tracker, output, resumed)
    main_process, device = accelerator.is_main_process, accelerator.device
    console = terminal.make_console(main_process)

    # ---- data and network --------------------------------------------------------------------------------------------
    config = records.config(recipe, imageset, accelerator)
    found = resume.find(output, config, accelerator) if run.resume else None
    recipe = resume.as_begun(recipe, found) if found else recipe
    torch.manual_seed(run.seed)
    with devices.local_main_first(accelerator):  # one download for all processes
        restored, kept = (found.preprocess, found.keep_batchnorm) if found else (None, None)
        net = network.build(recipe, len(classes), len(labels), accelerator.num_processes, run.plan, restored, kept)
        if found:
            resume.check_fit(found, net)
    batchnorm, frozen_epochs = net.trains_batchnorm(), net.frozen_epochs()
    loaders = make_loaders(imageset.splits, net.preprocess, recipe, accelerator, batchnorm, frozen_epochs)
    sampler = loaders["train"].batch_sampler

    # ---- plan --------------------------------------------------------------------------------------------------------
    times = None
    if run.plan or training.minutes:
        times = timing.measure(recipe, net, loaders, accelerator, head.planned_views(recipe, net))
        before, spent = found and found.state["epochs"], clock.seconds
        recipe = devices.from_main(accelerator, lambda: timing.fit(recipe, times, spent, before))
        training = recipe.training
    planned = plan.make(recipe, net, imageset, loaders, accelerator, precision, times)
    console.print(plan.as_json(planned) if run.json else plan.show(planned), soft_wrap=run.json)
    if run.plan:
        return 0
    output, tracker = startup.begin(recipe, output, config, found, accelerator, console)
    if run.preview:
        return startup.preview(output, loaders, classes, console)
    if run.lr_find:
        return startup.find_lr(recipe, net, loaders["train"], len(classes), accelerator, output, console)

    # ---- optimizer and state -----------------------------------------------------------------------------------------
    net.to(accelerator, run.channels_last, run.sync_bn)
    optimizer = accelerator.prepare(make_optimizer(net, training, accelerator.scaler))
    net.average = ema.make_average(net.model, training.ema)
    train_step = TrainingStep(recipe, net, optimizer, labels, len(classes), accelerator)
    lr_factor = schedule.make_schedule(training, sampler.steps)

    about = {"settings": config, "preprocess": asdict(net.preprocess), "keep_batchnorm": net.keep_batchnorm}
    metadata_of = partial(metadata.of_run, recipe.net, classes, net.preprocess)
    checkpoints = Checkpoints(output, run.keep_checkpoints, accelerator, net, optimizer, about, metadata_of)
    new = State(zero_sums(device), epochs=training.epochs, tracker=tracker.id, run_clock=clock)
    state = checkpoints.load(found) if found else new

    interrupts = Interrupts(accelerator, *period(run.checkpoint_every))
    feeds = Feeds(planned.caching, recipe, net, loaders, accelerator, console, interrupts)
    epochs = planned.epochs
    count = training.loaded_micro_batches
    estimate = terminal.TimeEstimate(epochs * sampler.steps, console)
    scores = {}  # of the best weights, by split

    try:
        # ---- head: solved on the features of the frozen part, as epoch 0 or as the whole training --------------------
        if planned.caching.head and not state.history:
            solution = head.solve(recipe, feeds.head_features(), labels, len(classes), accelerator)
            val_feed = feeds.validation(epoch=0)
            for number, fit in enumerate(solution.path, 1) if net.trains_head_alone() else [(0, solution.best)]:
                net.set_head(fit.weight, fit.bias)
                state.step = number
                val_scores = evaluate(val_feed, accelerator, run.channels_last)  # a stop waits: no path is cut short
                values, depths = val_scores.record(training.best_by), len(net.stages)
                record = records.head_record(number, fit, solution.views, state, optimizer, depths, values)
                state.add(record, chosen := fit is solution.best)
                if chosen:
                    scores["val"] = val_scores
                    checkpoints.keep_best(record)
                results.log(record, epochs, chosen, output, tracker, console)
            checkpoints.start = checkpoints.best if training.interpolate else {}
            checkpoints.save(state, optional=True)

        # ---- loop ----------------------------------------------------------------------------------------------------
        peak = schedule.peak_rate(training.lr, state.history, net.is_normalised())
        if training.lr == "auto" and epochs:
            console.print(terminal.rate_line(peak))
        for epoch in range(state.epoch, epochs):
            if schedule.should_stop(state.history, training) or timing.is_over(training.minutes, state, accelerator):
                break
            net.set_phase(epoch)
            train_feed, val_feed = feeds.at(epoch)  # images, or activations of the network's frozen part
            sampler.start_at(epoch, state.step - epoch * sampler.steps)

            with progress(train_feed.loader, f"epoch {epoch + 1}/{epochs}", console) as micro_batches:
                for step in range(state.step, (epoch + 1) * sampler.steps):
                    interrupts.exchange()
                    lr = peak * lr_factor(step, state.history)
                    result = train_step(train_feed, islice(micro_batches, count), step, lr, state.accumulate)
                    state.finish_step(result.sums, result.accumulate)
                    tracker.log_step(state.step, result)
                    estimate.update(state.step)
                    if interrupts.checkpoint_due(state.step):  # raises Stopped
                        checkpoints.save(state)

            seconds = state.epoch_clock.seconds
            val_scores = evaluate(val_feed, accelerator, run.channels_last, interrupts.raise_if_stopped)
            values = val_scores.record(training.best_by)
            record = records.epoch_record(state, optimizer, len(net.stages), values, accelerator, seconds)
            if improved := state.finish_epoch(record, training.best_by):
                scores["val"] = val_scores
                checkpoints.keep_best(record)
            results.log(record, epochs, improved, output, tracker, console)
            if warning := terminal.collapse(state.history, net.rates, len(loaders["val"].dataset), batchnorm):
                console.print(warning, soft_wrap=True)
            checkpoints.save(state, optional=True)

        # ---- end -----------------------------------------------------------------------------------------------------
        checkpoints.save(state)  # the last epoch's may have been skipped, and now other weights are loaded
        if checkpoints.start and state.epoch:
            images = feeds.images("val")
            score = partial(evaluate, images, accelerator, run.channels_last, interrupts.raise_if_stopped)
            report = partial(results.print_interpolation, console)
            scores = {"val": interpolation.choose(state, checkpoints, training.best_by, score, report)}
        net.evaluated.load_state_dict(checkpoints.best_state())
        for name in ("val", "test"):
            if name in loaders and name not in scores:  # a resumed run may not have seen its best epoch
                feed = feeds.images(name)
                scores[name] = evaluate(feed, accelerator, run.channels_last, interrupts.raise_if_stopped)
        temperature = fit_temperature(scores["val"].logits, scores["val"].labels) if training.calibrate else 1.0
        calibrated = {name: found.at_temperature(temperature) for name, found in scores.items()}
        if training.calibrate:
            net.divide_logits(temperature)
            score = {"val_loss": calibrated["val"].loss, "temperature": temperature}
            checkpoints.save_model(state.best | score, net.evaluated.state_dict())

    except Stopped:
        path = checkpoints.save(state)
        checkpoints.finish()
        results.report_stop(output, path, interrupts.signal, accelerator, tracker, console)
        return STOPPED

    if main_process:
        summary = records.summary(state, epochs, scores, calibrated, temperature, loaders, accelerator)
        summary |= records.without_copies(calibrated, planned.leaked)
        results.write(output, summary, calibrated, loaders, classes, net, console)
        tracker.log_end(state.step, output, summary, calibrated["val"], loaders["val"].dataset, classes)
        console.print(terminal.ending(summary, output, training), soft_wrap=True)
    checkpoints.finish()
    tracker.finish()
    accelerator.wait_for_everyone()  # a launcher ends all processes when one fails, be it at its exit
    return 0


if __name__ == "__main__":
    entry.run(main)
