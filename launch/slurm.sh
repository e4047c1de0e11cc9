#!/bin/bash
# configs/paper.yaml on one Slurm node with 8 GPUs of 80 GB.
#
#   sbatch launch/slurm.sh runs_dir=/shared/runs [key=value ...]
#
# Submit from the checkout, after `make install-gpu` there; both must be on storage that the node sees.
# HF_TOKEN and HF_HOME are taken from the environment that sbatch is called in.
#SBATCH --job-name=stargate-paper
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=400G
#SBATCH --time=48:00:00
#SBATCH --output=stargate-%j.log
# SIGTERM 3 minutes before the time is over: the run ends in order and writes its summary.
#SBATCH --signal=TERM@180
# A second try would be a new run beside the first.
#SBATCH --no-requeue
set -euo pipefail

checkout=${SLURM_SUBMIT_DIR:?start this with sbatch from the checkout}
stargate=$checkout/.venv/bin/stargate
if [[ ! -x $stargate ]]; then
    echo "slurm.sh: $stargate is missing; run: make install-gpu" >&2
    exit 2
fi
case " $* " in
    *" runs_dir=/"*) ;;
    *) echo "slurm.sh: give runs_dir=/ABSOLUTE/FOLDER on shared storage" >&2; exit 2 ;;
esac
cd "$checkout"
ulimit -n "$(ulimit -H -n)"
exec srun --kill-on-bad-exit=1 "$stargate" run paper "$@"
