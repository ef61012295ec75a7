#!/usr/bin/env bash
# Several nodes, a task per GPU. Submit from the repository, with the environment active that train.py needs:
#     sbatch launch/slurm_multi_node.sh --recipe finetune --data path/to/photos
#     OUTPUT=runs/mine sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm_multi_node.sh --recipe …
# The run's folder must be on storage that all nodes share. Near its time limit, preempted, or when a node fails, the
# job goes back to the queue and goes on where it was.
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

output=${OUTPUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}
. launch/slurm_run.sh
