#!/bin/bash
# A run on Slurm: on one node a Ray of the run's own, on several a Ray cluster of this job.
#
#   sbatch launch/slurm.sh runs_dir=/shared/runs [key=value ...]                      # configs/paper.yaml
#   sbatch --nodes=2 launch/slurm.sh run CONFIG runs_dir=/shared/runs [key=value ...]
#   sbatch --nodes=2 launch/slurm.sh resume /shared/runs/NAME
#
# Submit from the checkout, after `make install-gpu` there; it and runs_dir must be on storage that all nodes see.
# HF_TOKEN and HF_HOME are taken from the environment that sbatch is called in, and so are
#   STARGATE_JOIN_SECONDS  how long several nodes may take to join Ray (300)
#   STARGATE_IMAGE         on one node: the image to run in, by Slurm's pyxis (needs no .venv in the checkout): a name as
#                          pyxis takes it, of what launch/gpu.Dockerfile builds: STARGATE_IMAGE=registry#stargate:0.1.0-gpu
#   STARGATE_HEAD_IP       the first node's address for the others, where `hostname --ip-address` names another one
# Ray asks every process for a token. It lies in a file of mode 600 in the checkout while the job runs.
#SBATCH --job-name=stargate-paper
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=400G
#SBATCH --time=48:00:00
#SBATCH --output=stargate-%j.log
# SIGTERM to this script 3 minutes before the time is over: the run ends in order and writes its summary.
#SBATCH --signal=B:TERM@180
# A second try would be a new run beside the first.
#SBATCH --no-requeue
set -euo pipefail

say() { echo "slurm.sh: $*" >&2; }

checkout=${SLURM_SUBMIT_DIR:?start this with sbatch from the checkout}
bin=$checkout/.venv/bin
stargate=$bin/stargate
num_nodes=${SLURM_JOB_NUM_NODES:-1}
container=()
if [[ -n ${STARGATE_IMAGE:-} ]]; then
    if ((num_nodes > 1)); then
        say "STARGATE_IMAGE is for one node; on several unset it and run: make install-gpu"
        exit 2
    fi
    stargate=/opt/stargate/.venv/bin/stargate
elif [[ ! -x $stargate ]]; then
    say "$stargate is missing; run: make install-gpu, or set STARGATE_IMAGE"
    exit 2
fi
case ${1:-} in
    run | resume) command=("$@") ;;
    *) command=(run paper "$@") ;;
esac
case "${command[0]} ${command[*]:1} " in
    "run"*" runs_dir=/"* | "resume /"*) ;;
    run*) say "give runs_dir=/ABSOLUTE/FOLDER on shared storage"; exit 2 ;;
    *) say "give the run's folder as an absolute path: resume /ABSOLUTE/FOLDER/NAME"; exit 2 ;;
esac
if [[ -n ${STARGATE_IMAGE:-} ]]; then
    # What is read and written outside lies there under the same names: the runs, a config, downloaded models.
    mounts=$checkout:$checkout${HF_HOME:+,$HF_HOME:$HF_HOME}
    for word in "${command[@]:1}"; do
        case $word in
            runs_dir=/*) folder=${word#runs_dir=} ;;
            /*) folder=$(dirname "$word") ;;
            *) continue ;;
        esac
        mkdir -p "$folder"
        mounts+=,$folder:$folder
    done
    container=(--container-image="$STARGATE_IMAGE" --container-workdir="$checkout" --container-mounts="$mounts")
fi
cd "$checkout"
ulimit -n "$(ulimit -H -n)"
driver=
signalled=0
nodes=() rays=() state=

# The run ends in order. On one node it is a step of Slurm's; srun itself would kill it.
forward() {
    signalled=1
    if [[ -z $driver ]]; then
        say "told to end before the run began"
        exit 143
    elif ((num_nodes > 1)); then
        kill -TERM "$driver" 2>/dev/null || true
    else
        scancel --signal=TERM "$SLURM_JOB_ID" || true
    fi
}

# Ends Ray's nodes: whatever happened, nothing that was started here stays.
stop() {
    local pid waited=0
    trap '' TERM INT
    for pid in "${rays[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${rays[@]}"; do
        while kill -0 "$pid" 2>/dev/null && ((waited < 300)); do
            sleep 0.1
            waited=$((waited + 1))
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
    [[ -z $state ]] || rm -rf -- "$state"
}

# Waits for the run, also when a signal comes meanwhile. Its exit code is this script's.
finish() {
    local code
    while true; do
        signalled=0 code=0
        wait "$driver" || code=$?
        ((signalled)) || exit "$code"
    done
}

trap forward TERM INT
trap stop EXIT

if ((num_nodes == 1)); then
    srun --kill-on-bad-exit=1 "${container[@]}" "$stargate" "${command[@]}" &
    driver=$!
    finish
fi

if [[ ${command[0]} == run ]]; then
    command+=(cluster.address=auto)
elif ! grep -qx '  address: auto' "${command[1]}/config.yaml"; then
    say "${command[1]} was begun without a cluster: resume it on one node (--nodes=1)"
    exit 2
fi
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if ((${#nodes[@]} != num_nodes)); then
    say "Slurm names ${#nodes[@]} of $num_nodes nodes: $SLURM_JOB_NODELIST"
    exit 1
fi
ip=${STARGATE_HEAD_IP:-$(hostname --ip-address | tr ' ' '\n' | grep -v -e : -e '^127\.' | head -n 1 || true)}
if [[ -z $ip ]]; then
    say "${nodes[0]} does not know its address in the network: set STARGATE_HEAD_IP"
    exit 1
fi

# Nobody else may read the token, and no command line shows it.
state=$(umask 077 && mktemp -d "$checkout/.slurm-${SLURM_JOB_ID}-XXXXXX")
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$state/token")
unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
export RAY_ADDRESS=$ip:$((20000 + SLURM_JOB_ID % 10000)) # below the ports that systems give out by themselves
export RAY_worker_niceness=0                             # Ray's own 15 would starve engines

# ray_on NODE OPTIONS...: a node of Ray, as long as its step lives
ray_on() {
    local node=$1
    shift
    local step=(--overlap --export=ALL --nodes=1 --ntasks=1 --nodelist="$node")
    local ray=("$bin/ray" start --block --disable-usage-stats)
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
        ray+=(--num-cpus="$SLURM_CPUS_PER_TASK")
    fi
    # Of Ray's own: where to find a cluster that it is to join, which the head must not do.
    env -u RAY_ADDRESS srun "${step[@]}" "${ray[@]}" "$@" &
    rays+=($!)
}

ray_on "${nodes[0]}" --head --node-ip-address="$ip" --port="${RAY_ADDRESS##*:}" --include-dashboard=false
for node in "${nodes[@]:1}"; do
    ray_on "$node" --address="$RAY_ADDRESS"
done

"$bin/python" -m stargate.launch.nodes_joined "$num_nodes" "${STARGATE_JOIN_SECONDS:-300}" &
joining=$!
rays+=("$joining") # ended with the others if this script is told to end
while kill -0 "$joining" 2>/dev/null; do
    for i in "${!nodes[@]}"; do
        if ! kill -0 "${rays[i]}" 2>/dev/null; then
            code=0
            wait "${rays[i]}" || code=$?
            say "node ${nodes[i]}: Ray ended with $code before the run began"
            exit 1
        fi
    done
    sleep 0.2
done
code=0
wait "$joining" || code=$?
((code == 0)) || exit "$code"

"$stargate" "${command[@]}" &
driver=$!
finish
