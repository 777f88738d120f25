# Runs in the lab's host: dumps Debian's stock kernels on Godwit, stopped and while they run. Linux 6.1 says nothing about
# itself; 6.12 says where its crash note is (see publish.c). The dumps come back for check-dumps. Fails if a dump fails or
# a guest does not go on afterwards.
failed=0; passed=0
ok() { passed=$((passed + 1)); echo "  ok    $*"; }
bad() { failed=$((failed + 1)); echo "  WRONG $*"; }
# until_seen PATTERN FILE SECONDS
until_seen() { n=0; until grep -aq "$1" "$2" 2>/dev/null; do usleep 50000; n=$((n + 1)); [ $n -lt $(($3 * 20)) ] || return 1; done; }
ticks() { grep -ac '^tick' "$1"; }

for k in 6.1 6.12; do
  d=/tmp/$k; mkdir -p $d; mkfifo $d/in; : > $d/console; echo "Linux $k"
  device=; [ $k = 6.12 ] && device='-device vmcoreinfo'
  godwit run -M microvm,acpi=off $device -cpu host -m 256 -smp 2 -display none -nodefaults -kernel /vmlinuz-$k -initrd /guest.img \
    -append 'console=ttyS0 quiet' -serial stdio -qmp unix:$d/qmp,server=on,wait=off < $d/in > $d/console 2> $d/err &
  pid=$!; exec 3> $d/in
  until_seen 'tick 5 ' $d/console 120 && ok "$(grep -a GUEST-UP $d/console | tr -d '\r')" || { bad "does not come up"; tail -n 15 $d/console; tail -n 5 $d/err; }
  if [ $k = 6.12 ]; then
    echo 'publish 2>&1' >&3
    until_seen PUBLISHED $d/console 20 && ok "$(grep -a PUBLISHED $d/console | tr -d '\r')" || { bad "says nothing about itself"; tail -n 5 $d/console; }
  fi
  for how in elf kdump-zstd kdump-raw-zlib live-elf live-kdump-raw-snappy; do
    live=; format=${how#live-}; [ $format = $how ] || live=--live
    before=$(ticks $d/console)
    if said=$(godwit dump --qmp unix:$d/qmp --format $format $live /out/$k-$how 2>&1); then ok "$(echo "$said" | tail -n 1)"; else bad "$how: $said"; fi
    sleep 1; after=$(ticks $d/console); [ $after -gt $((before + 3)) ] && ok "goes on: tick $before, then $after" || bad "after $how: tick $before, then $after"
  done
  exec 3>&-; kill $pid; wait $pid
done
# QEMU's own dump of the same kernel, for a reader's verdict on ours.
d=/tmp/qemu; mkdir -p $d; : > $d/console; echo "Linux 6.1 on QEMU"
qemu-system-x86_64 -L /share -accel kvm -M microvm,acpi=off -cpu host -m 256 -smp 2 -display none -nodefaults -no-reboot -kernel /vmlinuz-6.1 \
  -initrd /guest.img -append 'console=ttyS0 quiet' -serial file:$d/console -qmp unix:$d/qmp,server=on,wait=off 2> $d/err &
pid=$!; until_seen 'tick 5 ' $d/console 150 && godwit dump --qmp unix:$d/qmp /out/qemu-6.1-elf > /dev/null 2>&1 && ok "dumped" || echo "  (QEMU gave no dump)"
kill $pid; wait $pid
ls -l /out
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
