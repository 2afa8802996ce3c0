#!/usr/bin/env bash
# Four ranks on four hosts: network namespaces with addresses of their own on a bridge. One rank is killed in the middle, the
# command is repeated: nothing is lost, nothing is measured twice.
# Usage: netns.sh BUILD_DIR. Exit code 77: skipped.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs ip mpirun python3
[ "$(id -u)" -eq 0 ] || skip "network namespaces want root"
name=cbl$$
ip netns add "$name-0" 2>/dev/null || skip "network namespaces are not allowed here"

clean_up() {
  for i in 0 1 2 3; do
    ip netns pids "$name-$i" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$name-$i" 2>/dev/null || true
  done
  ip link del "$name-br" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
ip link add "$name-br" type bridge 2>/dev/null || skip "bridges are not allowed here"
ip link set "$name-br" up
for i in 0 1 2 3; do
  [ "$i" = 0 ] || ip netns add "$name-$i"
  ip link add "$name-v$i" type veth peer name eth0 netns "$name-$i"
  ip link set "$name-v$i" master "$name-br" up
  ip -n "$name-$i" addr add "10.213.77.$((10 + i))/24" dev eth0
  ip -n "$name-$i" link set eth0 up
  ip -n "$name-$i" link set lo up
done

# What mpirun calls instead of ssh: the "host" is a namespace.
cat > "$work/agent" <<AGENT
#!/usr/bin/env bash
host=\$1
shift
exec ip netns exec "$name-\${host##*.1}" bash -c "export HOSTNAME=\$host; \$*"
AGENT
chmod +x "$work/agent"

settings=(--text "$work/text.txt" --tokens 1024 --ctx 64 --types "q2_K,q4_0,q6_K")  # long enough to be in its middle

run_ranks() {
  ip netns exec "$name-0" mpirun --allow-run-as-root -n 4 --host 10.213.77.10,10.213.77.11,10.213.77.12,10.213.77.13 \
    --map-by node --bind-to none --mca plm_rsh_agent "$work/agent" --mca btl self,tcp --mca btl_tcp_if_include eth0 \
    --mca oob_tcp_if_include eth0 -x LD_LIBRARY_PATH \
    "$cerebellum" ablate "$model" "${settings[@]}" --threads 1 --json --journal "$work/j.db" > "$work/out" 2> "$work/err"
}

measure_alone
run_ranks &
job=$!
for _ in $(seq 6000); do [ "$(rows "$work/j.db")" -ge 20 ] && break; kill -0 $job 2>/dev/null || break; sleep 0.05; done
victims=$(ip netns pids "$name-2" | while read -r pid; do
  [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$cerebellum" ] && echo "$pid"; done || true)
[ -n "$victims" ] || { tail -5 "$work/err"; fail "no rank runs on the third host"; }
kill -9 $victims
wait $job && fail "the job did not notice that a rank was killed"
before=$(rows "$work/j.db")
[ "$before" -ge 20 ] || fail "only $before figures have survived"

run_ranks || { tail -5 "$work/err"; fail "the second run failed"; }
[ "$(digest "$work/j.db")" = "$(digest "$work/alone.db")" ] || fail "the journal is not that of one process"
line=$(grep -E "fast and .* full measurements" "$work/err")
measured=$(echo "$line" | sed -E 's/^([0-9]+) fast and ([0-9]+) full.*/\1 + \2/')
[ $((before + measured)) -eq "$(rows "$work/j.db")" ] ||
  fail "$before figures had been recorded and $((measured)) were measured again, but there are $(rows "$work/j.db")"
echo "4 hosts, one killed: $before + $((measured)) = $(rows "$work/j.db") figures, those of one process"
