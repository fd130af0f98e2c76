#!/bin/bash
# A run of maemm on SLURM. Before the time limit it saves, ends, and queues itself again; the next start goes on.
#
#   sbatch docs/launch/slurm.sh image/mae_large data.root=/data/imagenet/train out=runs/large
#   LAUNCHER=torchrun sbatch --ntasks-per-node=1 docs/launch/slurm.sh image/mae_large ...    # a torchrun on each machine
#
# Its exit status is that of the run: 0 finished, 2 something to mend, 1 a fault of the program, 138 saved after SIGUSR1.
#
#SBATCH --job-name=maemm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

PYTHON=${PYTHON:-python}
LAUNCHER=${LAUNCHER:-srun}           # srun: each task is a rank; torchrun: each task starts one for every GPU of its machine
RESTARTS=${RESTARTS:-3}              # within the job, where a rank was killed
MAX_REQUEUES=${MAX_REQUEUES:-100}
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-1}}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

case $LAUNCHER in
    srun)
        command=("$PYTHON" -m maemm pretrain "$@")
        ;;
    torchrun)
        # torchrun hands SIGUSR1 on where it is told to, and waits that long for a checkpoint before it kills its ranks.
        export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1    # else a torchrun that is new cannot join those that are there
        first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        command=("$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node "$GPUS"
            --max-restarts "$RESTARTS" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID"
            --rdzv-endpoint "$first:$((15000 + SLURM_JOB_ID % 15000))" -m maemm pretrain "$@")
        ;;
    *)
        echo "LAUNCHER is '$LAUNCHER'; set it to srun or torchrun" >&2
        exit 2
        ;;
esac

stopped=          # whether SLURM has announced the time limit
interrupted=      # whether a signal has interrupted the waiting
trap 'stopped=yes interrupted=yes; kill -USR1 "$step" 2>/dev/null' USR1

# One step of the job; its status is that of the run: the highest of its ranks.
run() {
    srun --wait=300 "${command[@]}" &   # ranks that are left when one has ended have so long to save
    step=$!
    while
        interrupted=
        wait "$step"
        status=$?
        [ "$interrupted" ]
    do :; done
}

# Whether a rank was killed, by whatever: the others have ended, and all can start again in this job.
killed() {
    case $status in
        129 | 130 | 138 | 143) return 1 ;;    # saved after a signal
        *) [ "$status" -gt 128 ] ;;
    esac
}

run
for ((restart = 1; restart <= RESTARTS; restart++)); do
    [ "$stopped" ] || ! killed && break
    echo "a rank was killed (status $status): start $restart of $RESTARTS"
    run
done

if [ "$status" -eq 138 ] || { [ "$stopped" ] && [ "$status" -ne 0 ]; }; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
        echo "not queued again after $MAX_REQUEUES times (MAX_REQUEUES)" >&2
        exit "$status"
    fi
    echo "the time is over: job $SLURM_JOB_ID is queued again"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$status"
