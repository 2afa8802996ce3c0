#!/usr/bin/env bash
# scripts/ablate.sbatch, run by a slurmctld and a slurmd of this test's own on loopback: an array of shards, one of which is
# put in the queue again while it is running, comes to the journal of one process.
# Usage: slurm.sh BUILD_DIR. Exit code 77: skipped.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs slurmctld slurmd sbatch scontrol munged python3
[ "$(id -u)" -eq 0 ] || skip "slurmd wants to be root"

pids=()
clean_up() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

mkdir -m 0755 "$work/munge" "$work/state" "$work/spool" "$work/log"
chmod 0755 "$work"
head -c 1024 /dev/urandom > "$work/munge/key"
chmod 0600 "$work/munge/key"
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
  --log-file="$work/munge/log" --seed-file="$work/munge/seed" > "$work/log/munged" 2>&1 &
pids+=($!)

export SLURM_CONF=$work/slurm.conf
cat > "$SLURM_CONF" <<CONF
ClusterName=cerebellum
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
ReturnToService=2
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
for _ in $(seq 100); do [ -S "$work/munge/socket" ] && break; sleep 0.1; done
slurmctld -D -i > "$work/log/slurmctld" 2>&1 &
pids+=($!)
slurmd -D > "$work/log/slurmd" 2>&1 &
pids+=($!)
for _ in $(seq 300); do sinfo -h -o %t 2>/dev/null | grep -q idle && break; sleep 0.2; done
sinfo -h -o %t 2>/dev/null | grep -q idle || { tail -5 "$work"/log/*; fail "slurmd does not come up"; }

measure_alone
"$cerebellum" ablate "$model" "${settings[@]}" --threads 1 --prepare --journal "$work/start.db"
export CEREBELLUM=$cerebellum
sbatch --wait --array=1-4 --output="$work/log/job-%a" --chdir="$work" "$source_dir/scripts/ablate.sbatch" \
  "$model" "$work/start.db" "$work/shards" "${settings[@]}" > "$work/log/sbatch" &
waiting=$!
# As soon as the first shard has something, it is taken away and put in the queue again.
for _ in $(seq 3000); do [ "$(rows "$work/shards/part-1.db")" -gt 3 ] && break; sleep 0.1; done
before=$(rows "$work/shards/part-1.db")
job=$(sed -n 's/.*job \([0-9]*\).*/\1/p' "$work/log/sbatch")
scontrol requeue "${job}_1" || echo "it was through already"
wait "$waiting" || { tail -20 "$work"/log/job-*; fail "a task failed"; }
[ "$before" -gt 3 ] || fail "shard 1 never began"

"$cerebellum" journal merge "$work/all.db" "$work"/shards/part-*.db
[ "$(digest "$work/all.db")" = "$(digest "$work/alone.db")" ] || fail "the merged journal is not that of one process"
echo "4 shards through Slurm: the journal of one process ($(rows "$work/all.db") measurements)"
