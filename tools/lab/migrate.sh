# Runs in the lab's host: Debian's stock kernel moves live between two network namespaces, back and forth, while it writes and
# reads back checksummed files in memory (guest-task): Godwit ten times each plain, with xbzrle and over two channels with the RAM
# of both sides compared, then Godwit and QEMU three times each. Nothing may break, no tick may be lost or come twice, and the guest's clock stays sane. Prints a table.
failed=0; passed=0
ok() { passed=$((passed + 1)); echo "  ok    $*"; }
# QEMU is here to be compared with: that it cannot load a nested state now and then fails nothing of ours.
bad() {
  if [ "$name" = qemu ] && grep -q 'nested state' $d/err.*; then echo "  (QEMU failed) $*"; else failed=$((failed + 1)); echo "  WRONG $*"; fi
}
# until_seen PATTERN FILE SECONDS
until_seen() { n=0; until grep -q "$1" "$2" 2>/dev/null; do usleep 50000; n=$((n + 1)); [ $n -lt $(($3 * 20)) ] || return 1; done; }
until_there() { n=0; until [ -S "$1" ]; do usleep 20000; n=$((n + 1)); [ $n -lt 1500 ] || return 1; done; }

mkdir -p /var /tmp/m; [ -e /var/run ] || ln -s /run /var/run
ip netns add a; ip netns add b
ip -n a link add eth0 type veth peer name eth0 netns b
for n in a:1 b:2; do ip -n ${n%:*} link set lo up; ip -n ${n%:*} addr add 10.9.0.${n#*:}/24 dev eth0; ip -n ${n%:*} link set eth0 up; done

# start_at NAMESPACE HOP EXTRA...: one process of the VMM; its console goes to a file of its own, in the order of hops.
start_at() {
  ns=$1; hop=$2; shift 2
  ip netns exec $ns $vmm -cpu host -m 256 -smp 1 -display none -nodefaults -kernel /vmlinuz-6.12 -initrd /guest.img \
    -append 'console=ttyS0 quiet' -serial file:$d/console.$hop -qmp unix:$d/qmp.$hop,server=on,wait=off "$@" 2> $d/err.$hop &
  pid=$!
  until_there $d/qmp.$hop || { bad "$name: no monitor"; cat $d/err.$hop; return 1; }
}
value() { sed -n "s/^  \"$1\": \([0-9]*\),*$/\1/p" $2; }

# moves MODE COUNT OPTION...: back and forth; appends "MODE total downtime" of each move to $d/times
moves() {
  mode=$1; count=$2; shift 2; done=0
  while [ $done -lt $count ]; do
    old=$pid; from=$hop; case $side in a) side=b; to=10.9.0.2;; *) side=a; to=10.9.0.1;; esac
    start_at $side $((from + 1)) -incoming defer || return 1
    if ! godwit migrate --qmp unix:$d/qmp.$from --target-qmp unix:$d/qmp.$hop --json "$@" tcp:$to:$((4000 + hop)) > $d/result 2> $d/words; then
      bad "$name $mode, move $done: $(tail -n 2 $d/words) $(tail -n 3 $d/err.$hop)"; return 1
    fi
    echo "$mode $(value total-time $d/result) $(value downtime $d/result)" >> $d/times
    # A QEMU goes on only when its target does; neither is needed any more.
    kill $old; wait $old 2>/dev/null; done=$((done + 1))
    # The guest must have said something here before it moves on.
    until_seen '^tick' $d/console.$hop 20 || { bad "$name $mode, move $done: the guest is silent"; tail -n 3 $d/err.$hop; return 1; }
  done
  ok "$name $mode: $count moves"
}

# look: all that the guest wrote, in the order of its places
look() {
  n=0; : > $d/all; while [ $n -le $hop ]; do cat $d/console.$n >> $d/all; n=$((n + 1)); done
  # A shell's prompt may stand before a tick.
  tr -d '\r' < $d/all | grep -ao 'tick [0-9]* [0-9.]*$' > $d/ticks; cp $d/all /out/console.$name
  passes=$(grep -ac '^files' $d/all); grep -aq BROKEN $d/all && bad "$name: $(grep -a BROKEN $d/all | head -n 12)"
  [ $passes -ge 3 ] && ok "$name: $((passes * 5)) passes over the files, no checksum broken" || bad "$name: only $passes lines about files"
  awk -v name=$name '{ if (NR > 1) { if ($2 != n + 1) { print "tick " n " is followed by " $2; exit 1 }
      if ($3 + 0 < t) { print "the clock went back from " t " to " $3; exit 1 }
      if ($3 - t > jump) jump = $3 - t } n = $2; t = $3 + 0 }
    END { if (NR < 50) { print "only " NR " ticks"; exit 1 } printf "%s %d %.2f %.2f\n", name, NR, jump, t > "/tmp/m/clock" }' $d/ticks > $d/wrong \
    && ok "$name: ticks without a gap, clock only forwards" || bad "$name: $(cat $d/wrong)"
  [ -s /tmp/m/clock ] || return; read -r _ ticks jump last < /tmp/m/clock; rm /tmp/m/clock
  read -r now _ < /proc/uptime
  echo "  $name: $ticks ticks; longest step of the guest's clock between two $jump s"
  awk -v j=$jump 'BEGIN { exit !(j < 5) }' && ok "$name: no jump of the clock" || bad "$name: the clock jumped $jump s"
  # From GUEST-UP on the guest's clock has gone as long as the host's, but for the time it stood still.
  up=$(sed -n 's/^GUEST-UP \([0-9.]*\) .*/\1/p' $d/all | head -n 1)
  stood=$(awk '{ s += $3 } END { printf "%.2f", s / 1000 }' $d/times)
  awk -v up=$up -v last=$last -v from=$came_up -v now=$now -v stood=$stood 'BEGIN { lost = (now - from) - (last - up)
    printf "  the guest'"'"'s clock lost %.2f s of %.1f, and it stood still for %.2f s\n", lost, now - from, stood; d = lost - stood; exit !(d > -2 && d < 5) }' \
    && ok "$name: clock as long as the host's" || bad "$name: clock and host differ"
}

# one NAME COUNT VMM...: a guest and its moves, COUNT of each kind with the RAM of both sides compared
one() {
  name=$1; each=$2; shift 2; vmm=$*; d=/tmp/m/$name; mkdir -p $d; hop=0; side=a
  echo "$name"
  start_at a 0 || return
  until_seen GUEST-UP $d/console.0 90 || { bad "$name: no GUEST-UP"; tail -n 5 $d/console.0 $d/err.0; kill $pid; return; }
  read -r came_up _ < /proc/uptime
  until_seen '^files' $d/console.0 60 || bad "$name: no files are written"
  moves plain 3 && moves xbzrle 3 --xbzrle=64M && moves 2-channels 3 --multifd 2
  # The hash of all RAM is part of the downtime, so these are rows of their own.
  if [ $each -gt 0 ]; then
    moves plain+hash $each --verify && moves xbzrle+hash $each --xbzrle=64M --verify && moves 2-channels+hash $each --multifd 2 --verify
  fi
  look; kill $pid; wait $pid 2>/dev/null
}

one godwit 10 godwit run -M microvm,acpi=off
one qemu 0 qemu-system-x86_64 -L /share -accel kvm -M microvm,acpi=off
echo "| moves of a Debian guest, 256 MiB, 1 vCPU | total ms, mean / most | downtime ms, mean / most |"
echo "|---|---|---|"
for name in godwit qemu; do for mode in plain xbzrle 2-channels plain+hash xbzrle+hash 2-channels+hash; do
  awk -v who="$name $mode" -v mode=$mode '$1 == mode { n++; t += $2; u += $3; if ($2 > T) T = $2; if ($3 > U) U = $3 }
    END { if (n) printf "| %s, %d moves | %d / %d | %d / %d |\n", who, n, t / n, T, u / n, U }' /tmp/m/$name/times
done; done | tee /out/migrations
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
