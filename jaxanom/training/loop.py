"""The only loop: phases, logging, selection, checkpoints, resume."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxanom import record, trees
from jaxanom.contracts import Method
from jaxanom.errors import UserError
from jaxanom.parallel import placement, rules
from jaxanom.training import (
    checkpoint,
    meter,
    optimizer,
    plan,
    preemption,
    rows,
    state,
    step,
)
from jaxanom.training import selection as selecting
from jaxanom.types import Frozen, Params

MakeBatches = Callable[[str, int], Iterator[Mapping[str, Any]]]
OnLog = Callable[[dict[str, Any]], None]


class Job(NamedTuple):
    """What stays the same over all phases of a run."""

    config: plan.TrainConfig
    make_batches: MakeBatches
    mesh: Mesh
    metrics_path: Path
    checkpoints: checkpoint.Checkpoints
    identity: dict[str, Any]
    selection: selecting.Selection | None
    on_log: OnLog | None
    notes: Mapping[str, Any]


class Progress(NamedTuple):
    """Where a phase stands: all that a checkpoint holds, and the frozen input."""

    stage: plan.Stage
    done: int
    carried: state.TrainState
    fixed: Params
    frozen: Frozen

    @property
    def ends(self) -> bool:
        """Whether this was the phase's last step."""
        return self.done == self.stage.config.num_steps

    @property
    def measured(self) -> Params:
        """What the selection measures: the moving average if there is one."""
        return trees.merge(self.carried.ema or self.carried.params, self.fixed)


def run(
    method: Method,
    phases_config: Mapping[str, Any],
    train_config: Mapping[str, Any],
    make_batches: MakeBatches,
    mesh: Mesh,
    directory: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    initial: tuple[Params, Frozen] | None = None,
    selection: selecting.Selection | None = None,
    on_log: OnLog | None = None,
    notes: Mapping[str, Any] | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Trains all phases of a method, from the newest checkpoint if there is one.

    A run that was killed and started again ends, on the same mesh, in bit-equal
    parameters, if the compiled step is deterministic (on GPU that takes XLA's
    deterministic operations). A finished run returns its parameters at once.

    Args:
      method: Its phases are trained in order; one with num_steps 0 is left out.
      phases_config: {phase name: settings}, see `optimizer.OptimizerConfig`.
      train_config: see `plan.TrainConfig`.
      make_batches: (phase name, start step) -> iterator of host batches, beginning with
        the batch of that step; a pure function of both, or resuming trains on others.
      mesh: The devices, from `parallel.mesh.make_mesh`.
      directory: The run; `metrics.jsonl` and `checkpoints/` are written there.
      identity: JSON values that decide the result beside the two configs, such as the
        method's name and the data; a checkpoint with others is refused.
      initial: (params, frozen), if the caller has called `method.init` already.
      selection: ends phases and chooses what they end in; None: the last step.
      on_log: called with every row that is written.
      notes: JSON values that ride along in every checkpoint, such as config and record.

    Returns:
      (params, info). info: "frozen"; "ema_params", the last phase's moving average
      around what that phase did not train (`params` if averaging is off);
      "resumed_from", a global step or None; "global_step"; "skipped", {phase: steps
      without an update}, of the phases that this call saw.

    Raises:
      UserError: configs, batches or an existing checkpoint do not fit.
      FloatingPointError: `nan_patience` bad steps in a row.
      preemption.Preempted: SIGTERM came; the state is saved, if a step was trained.
    """
    config = plan.read_train(train_config)
    stages = plan.stages(method, phases_config)
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    params, frozen = method.init(key_init) if initial is None else initial
    params = placement.place(params, rules.shardings(params, mesh))
    frozen = placement.place_frozen(frozen, mesh, config.offload_frozen)
    directory = Path(directory)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints", config.keep, config.keep_best
    )
    alone = jax.process_count() == 1
    with contextlib.closing(checkpoints), preemption.at_once(alone):
        job = Job(
            config=config,
            make_batches=make_batches,
            mesh=mesh,
            metrics_path=directory / "metrics.jsonl",
            checkpoints=checkpoints,
            identity=plan.identity(config, stages, identity or {}),
            selection=selection,
            on_log=on_log,
            notes=dict(notes or {}),
        )
        return _run_stages(job, stages, params, frozen, key_train)


def _run_stages(
    job: Job, stages: list[plan.Stage], params: Params, frozen: Frozen, key: jax.Array
) -> tuple[Params, dict[str, Any]]:
    """Trains what the newest checkpoint has not finished."""
    resumed = job.checkpoints.latest_step()
    meta = {"phase_index": -1} if resumed is None else _read_meta(job, resumed)
    if jax.process_index() == 0:
        rows.keep_until(job.metrics_path, resumed or 0)
    averaged, skipped, last = params, {}, 0
    for stage in stages:
        if stage.index < meta["phase_index"]:
            continue
        carried, fixed, tx = _start(job, stage, params, key)
        if stage.index == meta["phase_index"]:
            carried, fixed = _restore(job, resumed, carried, fixed)
        progress = Progress(stage, int(carried.step), carried, fixed, frozen)
        if progress.ends or _is_over(job, stage):
            _check_finite(job, progress, saved=True)
        else:
            progress = _train(job, progress, tx)
        carried = progress.carried
        params = trees.merge(carried.params, fixed)
        averaged = trees.merge(carried.ema, fixed) if carried.ema else params
        best = job.selection and job.selection.best(stage.name)
        if best is not None:
            params = averaged = placement.place(best, rules.shardings(best, job.mesh))
        skipped[stage.name] = int(carried.skipped)
        last = stage.offset + stage.config.num_steps
    return params, {
        "frozen": placement.place_frozen(frozen, job.mesh),
        "ema_params": averaged,
        "resumed_from": resumed,
        "global_step": last,
        "skipped": skipped,
    }


def _start(
    job: Job, stage: plan.Stage, params: Params, key: jax.Array
) -> tuple[state.TrainState, Params, Any]:
    """Splits off what the phase trains and makes its first state."""
    trained, fixed = trees.split(params, stage.phase.trainable)
    tx = optimizer.make(stage.config, stage.phase.transport)
    phase_key = jax.random.fold_in(key, stage.index)

    def init(trained, phase_key):
        return state.init(trained, tx, phase_key, job.config.ema_decay > 0)

    places = state.shardings(jax.eval_shape(init, trained, phase_key), job.mesh)
    return jax.jit(init, out_shardings=places)(trained, phase_key), fixed, tx


def _train(job: Job, start: Progress, tx: Any) -> Progress:
    """Trains one phase to its end."""
    from tqdm import tqdm

    stage, carried, progress = start.stage, start.carried, start
    num_steps, log_every = stage.config.num_steps, job.config.log_every
    train_step = step.of_stage(
        stage, tx, carried, start.frozen, job.mesh, job.config.ema_decay
    )
    compiled: dict[Any, meter.Compiled] = {}
    watch = meter.Meter(job.mesh.size, job.config.peak_flops)
    batches = iter(job.make_batches(stage.name, start.done))
    window: list[dict[str, Any]] = []
    learning_rate = jax.jit(optimizer.schedule(stage.config))  # one program, not ten
    asked_to_stop = None
    with contextlib.ExitStack() as stack:
        look = {"desc": stage.name, "unit": "step", "disable": None}  # quiet in a file
        bar = stack.enter_context(tqdm(total=num_steps, initial=start.done, **look))
        for done in range(start.done + 1, num_steps + 1):
            batch = _next_batch(job, stage, batches, done - 1)
            args = (carried, start.fixed, start.frozen, batch)
            shapes = meter.shapes_of(batch)
            if shapes not in compiled:
                compiled[shapes] = _compile(job, stage, done, watch, train_step, args)
            # Until a step is taken there is nothing to save.
            asked_to_stop = asked_to_stop or stack.enter_context(preemption.watch())
            with jax.profiler.StepTraceAnnotation(stage.name, step_num=done):
                carried, metrics = compiled[shapes].call(*args)
            progress = start._replace(done=done, carried=carried)
            window.append(metrics)
            watch.tick(jax.tree.leaves(batch)[0].shape[0])
            if len(window) >= (ahead := watch.ahead()):
                jax.block_until_ready(window[-ahead])
            bar.update()
            if done % log_every == 0 or progress.ends:
                row = rows.train_row(window, carried)
                row["learning_rate"] = float(learning_rate(done - 1))
                rates = watch.read(num_steps - done, compiled[shapes].flops)
                _log(job, stage, done, row | rates)
                bar.set_postfix(loss=row["loss"])
                window = []
                _check_finite(job, progress)
            stop = asked_to_stop(stage.offset + done)
            if _pause(job, progress, watch, stop) and _is_over(job, stage):
                break
    return progress


def _is_over(job: Job, stage: plan.Stage) -> bool:
    """Whether the selection wants no more steps of a phase."""
    return job.selection is not None and job.selection.is_over(stage.name)


def _next_batch(
    job: Job, stage: plan.Stage, batches: Iterator[Mapping[str, Any]], position: int
) -> dict[str, jax.Array]:
    """Takes and places the batch of a step."""
    batch = next(batches, None)
    if batch is None:
        raise UserError(
            f"make_batches({stage.name!r}, ...) ended before step {position}; "
            f"config.phases.{stage.name}.num_steps={stage.config.num_steps} needs one "
            "batch a step: repeat the data"
        )
    return placement.place_batch(batch, job.mesh, stage.config.accumulate)


def _compile(
    job: Job,
    stage: plan.Stage,
    done: int,
    watch: meter.Meter,
    train_step: step.Step,
    args: tuple[Any, ...],
) -> meter.Compiled:
    """Compiles the step for these shapes, off the clock."""
    with watch.paused():
        compiled = meter.compile_ahead(train_step.apply, *args)
        _log(job, stage, done, {"kind": "compile", "compile_s": compiled.seconds})
    return compiled


def _pause(job: Job, progress: Progress, watch: meter.Meter, stop: bool) -> bool:
    """Measures and saves when it is time, off the clock; stops if asked to.

    Returns:
      Whether the selection has measured this step.
    """
    stage, done, config = progress.stage, progress.done, job.config

    def due(every):
        return progress.ends or (every > 0 and done % every == 0)

    selects = job.selection is not None and due(job.selection.every)
    if not (stop or selects or due(config.checkpoint_every)):
        return False
    jax.block_until_ready(progress.carried.step)
    with watch.paused():
        value = _select(job, progress) if selects else None
        if stop or due(config.checkpoint_every):
            _save(job, progress, wait=stop or progress.ends, value=value)
    if stop:
        newest = job.checkpoints.latest_step()
        where = "nowhere" if newest is None else f"in {job.checkpoints.path(newest)}"
        raise preemption.Preempted(
            f"stopped by SIGTERM in phase {stage.name!r} after step {done}; the state "
            f"is saved {where}: start the same command again to go on"
        )
    return selects


def _select(job: Job, progress: Progress) -> float:
    """Measures the current parameters for the selection, and logs the value."""
    stage, done = progress.stage, progress.done
    frozen = placement.place_frozen(progress.frozen, job.mesh)
    value = job.selection.add(progress.measured, frozen, stage.name, done)
    _log(job, stage, done, {"kind": "selection", "value": value})
    return value


def _log(job: Job, stage: plan.Stage, done: int, values: dict[str, Any]) -> None:
    """Writes a row; one process does."""
    if jax.process_index() != 0:
        return
    row = {"phase": stage.name, "step": done, "global_step": stage.offset + done}
    row |= values
    record.append_metrics(job.metrics_path, row)
    if job.on_log is not None:
        job.on_log(row)


def _check_finite(job: Job, progress: Progress, saved: bool = False) -> None:
    """Stops a run that no longer learns."""
    bad, patience = int(progress.carried.bad_in_a_row), job.config.nan_patience
    if bad < patience:
        return
    stage, done = progress.stage, progress.done
    if not saved:
        _save(job, progress, wait=True)
    where = job.checkpoints.path(stage.offset + done)
    raise FloatingPointError(
        f"phase {stage.name!r}, step {done}: the loss or its gradient was not finite "
        f"in {bad} steps in a row (config.train.nan_patience={patience}). The "
        f"parameters of the last good step are saved in {where}; lower config.phases."
        f"{stage.name}.learning_rate or clip_norm and start in a new directory"
    )


def _save(job: Job, progress: Progress, wait: bool, value: float | None = None) -> None:
    """Saves all that resuming needs; `fixed` too, as an earlier phase trained it."""
    stage, done = progress.stage, progress.done
    meta = {
        "phase": stage.name,
        "phase_index": stage.index,
        "step": done,
        "data": {"next_index": done},
        "identity": job.identity,
        "notes": job.notes,
    }
    tree = {"state": progress.carried, "fixed": progress.fixed}
    job.checkpoints.save(stage.offset + done, tree, meta, wait=wait, value=value)


def _restore(
    job: Job, at: int, carried: state.TrainState, fixed: Params
) -> tuple[state.TrainState, Params]:
    """Reads a checkpoint onto the current mesh."""
    places = {
        "state": state.shardings(carried, job.mesh),
        "fixed": rules.shardings(fixed, job.mesh),
    }
    target = checkpoint.abstract({"state": carried, "fixed": fixed}, places)
    tree = job.checkpoints.restore(at, target)
    return tree["state"], tree["fixed"]


def _read_meta(job: Job, at: int) -> dict[str, Any]:
    """Reads the note of a checkpoint and refuses that of another run."""
    meta = job.checkpoints.read_meta(at)
    wrong = plan.changes(job.identity, meta["identity"])
    if wrong:
        raise UserError(
            f"{job.checkpoints.path(at)} was written by a run with other settings; use "
            "another directory or set them back:\n  " + "\n  ".join(wrong)
        )
    return meta
