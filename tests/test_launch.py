"""The scripts of `launch/`, with the programs they call replaced by ones that tell."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
TRAINING = ("gpu_node.sh", "tpu_pod.sh", "slurm.sbatch")
WORDS = ("--config=some.py", "--run=runs/some")


@pytest.fixture
def place(tmp_path):
    """A copy of the scripts beside a python that writes down how it was called."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    write(
        tmp_path / ".venv" / "bin" / "python",
        'echo "python $* ${JAX_PROCESS_ID:-}/${JAX_NUM_PROCESSES:-}" >> calls',
    )
    return tmp_path


def write(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def call(place, name, *words, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "JAX"))}
    env |= {"PATH": f"{place / 'bin'}:{env['PATH']}"} | variables
    return subprocess.Popen([place / "launch" / name, *words], cwd=place, env=env)


def calls(place):
    return sorted((place / "calls").read_text().splitlines())


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.s*")), ids=lambda p: p.name)
def test_a_script_parses_stops_at_errors_and_is_short(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert "set -euo pipefail" in path.read_text()
    assert len(path.read_text().splitlines()) <= 45


@pytest.mark.parametrize("name", TRAINING)
def test_dry_run_is_handed_on_to_train_and_starts_nothing_else(place, name):
    assert call(place, name, *WORDS, "--dry_run").wait() == 0
    (said,) = calls(place)
    assert said.startswith(f"python -m jaxanom train {' '.join(WORDS)} --dry_run")


def test_dry_run_of_a_job_set_is_that_of_its_own_command(place):
    assert call(place, "jobset.sh", "--dry_run").wait() == 0
    (said,) = calls(place)
    wanted = "train --config=configs/app/folder.py --run=/runs/mine --dry_run"
    assert said.startswith(f"python -m jaxanom {wanted}")
    assert (LAUNCH.parent / "configs" / "app" / "folder.py").is_file()


def test_a_node_starts_one_process_a_gpu_and_numbers_them(place):
    assert call(place, "gpu_node.sh", *WORDS, GPUS="3").wait() == 0
    assert [said.split()[-1] for said in calls(place)] == ["0/3", "1/3", "2/3"]


def test_a_node_hands_the_signal_on_and_leaves_with_the_status_of_its_processes(place):
    # Saving takes a moment after the signal; the script must wait for it.
    body = 'trap "sleep 0.5; echo saved >> calls; exit 75" TERM\n'
    body += "echo up >> calls; while :; do sleep 0.05; done"
    write(place / ".venv" / "bin" / "python", body)
    process = call(place, "gpu_node.sh", *WORDS, GPUS="2")
    give_up = time.monotonic() + 60
    while not (place / "calls").is_file() or calls(place) != ["up", "up"]:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert calls(place) == ["saved", "saved", "up", "up"]


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (2, False), (0, False)])
def test_slurm_requeues_a_run_that_was_stopped_and_no_other(place, status, requeued):
    write(place / "bin" / "srun", f"exit {status}")
    write(place / "bin" / "scontrol", 'echo "scontrol $*" >> calls')
    assert call(place, "slurm.sbatch", *WORDS, SLURM_JOB_ID="7").wait() == status
    assert (place / "calls").is_file() == requeued
    if requeued:
        assert calls(place) == ["scontrol requeue 7"]


@pytest.mark.parametrize(("statuses", "times"), [((75, 0), 2), ((2, 0), 1)])
def test_a_pod_repeats_the_command_only_after_a_preemption(place, statuses, times):
    (place / "statuses").write_text(" ".join(map(str, statuses)))
    body = (
        'echo "gcloud $*" >> calls; read -r now rest < statuses; '
        'echo "$rest" > statuses; exit "$now"'
    )
    write(place / "bin" / "gcloud", body)
    found = call(place, "tpu_pod.sh", *WORDS, TPU="t", ZONE="z", WAIT_S="0").wait()
    assert found == statuses[times - 1] and len(calls(place)) == times
    assert all("--worker=all" in said and WORDS[0] in said for said in calls(place))


def test_a_sweep_trains_each_line_in_its_own_directory(place):
    grid = place / "grid.txt"
    grid.write_text("--config.seed=1\n--config.seed=2 --config.train.keep=1\n")
    assert call(place, "sweep.sh", grid, *WORDS).wait() == 0
    first, second = calls(place)
    assert "--run=runs/some/1 --config.seed=1" in first
    assert "--run=runs/some/2 --config.seed=2 --config.train.keep=1" in second
    # A task of a job array takes its own line alone.
    (place / "calls").unlink()
    assert call(place, "sweep.sh", grid, *WORDS, SLURM_ARRAY_TASK_ID="2").wait() == 0
    (said,) = calls(place)
    assert "--run=runs/some/2" in said


def test_other_extras_are_installed_anew(tmp_path):
    """What `make` would run, where a plain installation is."""
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".installed", ".installed-test"):
        (tmp_path / name).touch()

    def told(target, *words):
        words = ["make", "--dry-run", target, f"VENV={tmp_path}", *words]
        return subprocess.check_output(words, cwd=LAUNCH.parent, text=True)

    assert "pip install" not in told("quickstart") + told("test")
    installed = told("quickstart", "EXTRAS=cuda,data")
    assert "--editable '.[photos,cuda,data]'" in installed
    assert f"touch {tmp_path}/.installed.cuda.data\n" in installed
    assert "--editable '.[photos,cuda,test,hf]'" in told("test", "EXTRAS=cuda")
