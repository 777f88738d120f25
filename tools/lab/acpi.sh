# Runs in the lab's host: Debian's stock kernel with ACPI on, two vCPUs and ext4 on a virtio disk. It must find both processors, reset
# itself and come up again with what it had written, move to another process while it writes, and there switch itself off when the
# power button is pressed, with the file system clean.
failed=0; passed=0; d=/tmp/acpi; mkdir -p /var $d; [ -e /var/run ] || ln -s /run /var/run
ok() { passed=$((passed + 1)); echo "  ok    $*"; }
bad() { failed=$((failed + 1)); echo "  WRONG $*"; }
now() { read -r up _ < /proc/uptime; echo "${up%.*}${up#*.}"; }   # hundredths of a second
since() { t=$(($(now) - $1)); printf '%d.%02d s' $((t / 100)) $((t % 100)); }
# until_seen PATTERN FILE SECONDS [TIMES]
until_seen() { until [ "$(grep -ac "$1" "$2" 2> /dev/null || :)" -ge "${4:-1}" ] 2> /dev/null; do usleep 100000; [ $(($(now) - begin)) -lt $(($3 * 100)) ] || return 1; done; }
# seen WORDS PATTERN FILE SECONDS [TIMES]: a check
seen() { w=$1; begin=$(now); shift; until_seen "$@" && ok "$w" || { bad "not seen: $w"; return 1; }; }
qmp() { godwit qmp --qmp unix:$d/qmp.$hop "$@"; }
finish() { [ $failed -eq 0 ] || tail -n 40 $d/console.* $d/events.* $d/err.*; echo "$passed passed, $failed failed"; [ $failed -eq 0 ]; exit; }

# start EXTRA...: the next process of the VMM, its events in a file
hop=-1
start() {
  hop=$((hop + 1)); mkfifo $d/in.$hop
  godwit run -M microvm -cpu host -m 256 -smp 2 -display none -nodefaults -kernel /vmlinuz-6.12 -initrd /guest.img -append 'console=ttyS0 quiet' \
    -drive file=$d/disk,if=none,id=disk,format=raw -device virtio-blk-device,drive=disk \
    -serial stdio -qmp unix:$d/qmp.$hop,server=on,wait=off -qmp unix:$d/listen.$hop,server=on,wait=off "$@" < $d/in.$hop > $d/console.$hop 2> $d/err.$hop &
  pid=$!; exec 3> $d/in.$hop
  n=0; until [ -S $d/listen.$hop ]; do usleep 20000; n=$((n + 1)); [ $n -lt 1500 ] || { bad "no monitor"; cat $d/err.$hop; finish; }; done
  : > $d/events.$hop; (n=0; until godwit qmp --qmp unix:$d/listen.$hop --events >> $d/events.$hop 2> $d/listen-err.$hop; do usleep 100000; n=$((n + 1)); [ $n -lt 50 ] || break; done) &
}

truncate -s 64M $d/disk; mke2fs -q -F -t ext4 $d/disk || bad "no file system"
began=$(now); start
up=$d/console.0; seen "up" GUEST-UP $up 150 || finish
line=$(grep -a GUEST-UP $up | tr -d '\r'); case $line in *" cpus=2 "*) ok "$line, after $(since $began)";; *) bad "up, but with '$line'";; esac
seen "the disk is written to" 'KEPT written' $up 60 && seen "the button is there" BUTTON-READY $up 60 || finish
began=$(now); echo 'reboot -f' >&3
seen "a reset, the guest's own" '"RESET".*"guest": *true' $d/events.0 60
seen "up again" GUEST-UP $up 150 2 && ok "after $(since $began)" || finish
passes=$(grep -ac '^files' $up || :)
seen "what was written before the reset is there" 'KEPT right' $up 60
seen "the button is there again" BUTTON-READY $up 60 2; seen "files are written and read back" '^files' $up 60 $((passes + 1))
from=$hop; old=$pid; start -incoming defer
if said=$(godwit migrate --qmp unix:$d/qmp.$from --target-qmp unix:$d/qmp.$hop unix:$d/move 2>&1); then ok "moved: $(echo "$said" | grep -a downtime | head -n 1)"; else bad "migrate: $said"; tail -n 3 $d/err.$hop; finish; fi
kill $old; wait $old 2> /dev/null
seen "files are written and read back where it moved" '^files' $d/console.$hop 60 6
began=$(now); qmp system_powerdown > /dev/null || bad "system_powerdown"
seen "event POWERDOWN" '"POWERDOWN"' $d/events.$hop 10
seen "the guest's kernel tells of the key KEY_POWER" 'BUTTON 1 116' $d/console.$hop 60
seen "the disk is let go of" UNMOUNTED $d/console.$hop 60
seen "it switches itself off" '"SHUTDOWN".*"guest": *true' $d/events.$hop 60 && wait $pid && ok "and its process ends with status 0, after $(since $began)" || bad "status $?"
grep -a BROKEN $d/console.* > $d/broken && bad "$(head -n 5 $d/broken)" || ok "no file is broken"
said=$(e2fsck -fn $d/disk 2>&1) && ok "the file system is clean: $(echo "$said" | tail -n 1)" || bad "e2fsck: $said"
cat $d/events.* | grep -v '"RTC' | sed 's/^/  /'; cp $d/console.* $d/events.* /out/
finish
