#!/usr/bin/env bash
# One node, a task per GPU. Submit from the repository, with the environment active that train.py needs:
#     sbatch launch/slurm_one_node.sh --recipe finetune --data path/to/photos
#     OUTPUT=runs/mine sbatch --gpus-per-node=4 --ntasks-per-node=4 --time=8:00:00 launch/slurm_one_node.sh --recipe …
# Near its time limit or preempted, the job saves, goes back to the queue, and goes on where it was.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

output=${OUTPUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}
. launch/slurm_run.sh
