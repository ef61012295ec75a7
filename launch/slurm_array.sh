#!/usr/bin/env bash
# The same recipe with five seeds, a job each, to tell a difference from chance. Submit from the repository:
#     sbatch launch/slurm_array.sh --recipe finetune --data path/to/photos
#     sbatch --array=0-9 launch/slurm_array.sh --recipe …
#SBATCH --job-name=finetune
#SBATCH --array=0-4
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

output=${OUTPUT:-runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID}/seed-$SLURM_ARRAY_TASK_ID
set -- "$@" --seed "$SLURM_ARRAY_TASK_ID"
. launch/slurm_run.sh
