# Sourced by the slurm_*.sh beside it: one process per task, signals passed on, a requeue of a stopped run.
# $output is the run's folder; the arguments are train.py's.

export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# Whether the run has a file, or with --folds the run of a fold.
has() { [ -e "$output/$1" ] || compgen -G "$output/fold-*/$1" > /dev/null; }

go_on=()
has config.json && go_on=(--resume) # a second start: after a requeue, or the same command again

# No launcher in between: each task is a rank that gets the signals itself, and its exit code is train.py's.
# --wait: ranks that outlive another by a minute are ended. Normally they end within moments of each other.
srun --wait=60 --kill-on-bad-exit=0 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python train.py "$@"' bash "$@" --output "$output" "${go_on[@]}" &
step=$!

trap 'kill -USR1 $step' USR1 # the time limit is near: srun passes it on
trap : TERM                  # preempted: Slurm tells the tasks itself
while wait $step; code=$?; [ $code -gt 128 ] && kill -0 $step 2>/dev/null; do :; done

# Requeue where the run was stopped after a checkpoint (resume-me), or by a signal before its first step. A job that
# scancel ended is no longer running, and is not requeued.
if has resume-me || [ $code = 138 ] || [ $code = 143 ]; then
    scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING && scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
