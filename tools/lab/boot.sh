# boot.sh [KERNEL:VCPUS]...: runs in the lab's host: Debian's stock kernels on Godwit and the same on QEMU beside it.
# Debian's cloud kernels are built without MP tables (CONFIG_X86_MPPARSE), so that without ACPI they find one processor
# of two, on QEMU too; the generic kernel finds both.
# Each guest must reach GUEST-UP, go on ticking, answer on its serial console, stand still while stopped, go on after cont,
# be saved to a file and go on from it. Prints one line per check and a table of the times to GUEST-UP; fails if a check fails.
failed=0; passed=0
ok() { passed=$((passed + 1)); echo "  ok    $*"; }
bad() { failed=$((failed + 1)); echo "  WRONG $*"; }
now() { read -r up _ < /proc/uptime; echo "${up%.*}${up#*.}"; }   # hundredths of a second
ticks() { grep -c '^tick' "$1"; }
# until_seen PATTERN FILE SECONDS
until_seen() { n=0; until grep -q "$1" "$2" 2>/dev/null; do usleep 50000; n=$((n + 1)); [ $n -lt $(($3 * 20)) ] || return 1; done; }
qmp() { sock=$1; shift; godwit qmp --qmp "unix:$sock" "$@"; }

# start NAME CPUS KERNEL VMM...: boots a guest whose console is a pair of FIFOs; sets pid and took (hundredths of a second)
start() {
  name=$1; cpus=$2; kernel=$3; shift 3; d=/tmp/$name; mkdir -p $d; rm -f $d/in; mkfifo $d/in; : > $d/console
  t0=$(now)
  "$@" -cpu host -m 256 -smp $cpus -display none -nodefaults -kernel $kernel -initrd /guest.img -append 'console=ttyS0 quiet' \
    -serial stdio -qmp unix:$d/qmp,server=on,wait=off < $d/in > $d/console 2> $d/err &
  pid=$!; exec 3> $d/in
  until_seen GUEST-UP $d/console 90; s=$?; took=$(($(now) - t0))
  [ $s -eq 0 ] || { echo "--- $name: last lines of its console and stderr"; tail -n 15 $d/console; tail -n 5 $d/err; }
  return $s
}
finish() { exec 3>&-; kill $pid 2>/dev/null; wait $pid 2>/dev/null; }

# The host is emulated and translates code when it runs first: one boot pays for that.
start warm-up 1 /vmlinuz-6.12 qemu-system-x86_64 -L /share -accel kvm -M microvm,acpi=off; finish
ours=0; theirs=0; turn=0
on_qemu() {
  if start qemu-$k-$cpus $cpus $kernel qemu-system-x86_64 -L /share -accel kvm -M microvm,acpi=off; then q=$took; echo "  QEMU: $(grep GUEST-UP $d/console | tr -d '\r')"; else q=9999; echo "  (QEMU did not come up)"; fi
  finish
}
[ $# -gt 0 ] || set -- 6.12:1 6.12:2 6.1:1 6.1:2 6.1-generic:2
for what in "$@"; do k=${what%:*}; cpus=${what#*:}
  kernel=/vmlinuz-$k; g=godwit-$k-$cpus; echo "Linux $k, $cpus vCPUs"
  [ $((turn % 2)) -eq 0 ] || on_qemu   # first and second in turn
  found=1; case $k in *-generic) found=$cpus;; esac
  if start $g $cpus $kernel godwit run -M microvm,acpi=off; then
    up=$took
    line=$(grep GUEST-UP $d/console | tr -d '\r'); case $line in *" ${k%-generic}."*" cpus=$found "*) ok "$line";; *) bad "up, but with '$line'";; esac
    until_seen 'tick 5 ' $d/console 20 && ok ticks || bad "does not tick"
    echo 'echo console-$((6 * 7))' >&3; until_seen console-42 $d/console 20 && ok "answers on the console" || bad "no answer on the console"
    qmp $d/qmp stop > /dev/null || bad "stop"; usleep 300000; a=$(ticks $d/console); sleep 1; b=$(ticks $d/console)
    [ $a -eq $b ] && ok "stands still while stopped" || bad "ticked from $a to $b while stopped"
    qmp $d/qmp cont > /dev/null || bad "cont"; sleep 1; c=$(ticks $d/console); [ $c -gt $b ] && ok "goes on after cont" || bad "no tick after cont"
    qmp $d/qmp stop > /dev/null; last=$(grep -a '^tick' $d/console | tail -n 1)
    qmp $d/qmp migrate uri=file:$d/state > /dev/null || bad "migrate to a file"
    n=0; until qmp $d/qmp query-migrate | grep -q '"completed"'; do usleep 200000; n=$((n + 1)); [ $n -lt 100 ] || { bad "not saved: $(qmp $d/qmp query-migrate)"; break; }; done
    finish; ls -l $d/state | { read -r _ _ _ _ size _; echo "  saved $size bytes after '$last'"; }
    rm -f $d/in; mkfifo $d/in; : > $d/console2
    godwit run -M microvm,acpi=off -cpu host -m 256 -smp $cpus -display none -nodefaults -kernel $kernel -initrd /guest.img -append 'console=ttyS0 quiet' \
      -serial stdio -qmp unix:$d/qmp2,server=on,wait=off -incoming file:$d/state < $d/in > $d/console2 2> $d/err2 &
    pid=$!; exec 3> $d/in
    # It was saved paused, so it is paused when it is loaded, as with QEMU.
    n=0; until qmp $d/qmp2 query-status 2> /dev/null | grep -q '"paused"'; do usleep 200000; n=$((n + 1)); [ $n -lt 300 ] || break; done
    qmp $d/qmp2 cont > /dev/null || bad "cont after loading"
    until_seen '^tick' $d/console2 20 && sleep 1
    first=$(grep -a '^tick' $d/console2 | head -n 1); x=${last#tick }; y=${first#tick }; x=${x%% *}; y=${y%% *}
    [ -n "$y" ] && [ "$y" -ge "$x" ] && [ "$y" -le $((x + 3)) ] && ok "goes on from the file with '$first'" || { bad "after loading: '$first' (last before: '$last')"; tail -n 5 $d/err2; }
    echo 'echo console-$((7 * 7))' >&3; until_seen console-49 $d/console2 20 && ok "answers after loading" || bad "no answer after loading"
    rm -f $d/state
  else bad "no GUEST-UP in 90 s"; up=9999; fi
  finish
  [ $((turn % 2)) -eq 1 ] || on_qemu; turn=$((turn + 1)); ours=$((ours + up)); theirs=$((theirs + q))
  printf 'GUEST-UP %-12s %s vCPU  godwit %d.%02d s  qemu %d.%02d s\n' $k $cpus $((up / 100)) $((up % 100)) $((q / 100)) $((q % 100)) | tee -a /out/boot-times
done
cat /out/boot-times
# One boot differs from the next by a third in here, so that only a gross difference fails; the sums are for a person to read, on a
# machine that does nothing else.
[ $ours -le $((theirs * 3 / 2)) ] && ok "up in the time that QEMU takes, all in all: $ours to $theirs hundredths of a second" || bad "up far later than on QEMU: $ours to $theirs hundredths of a second"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
