# Runs in the lab's host: writes the memory of a busy Debian guest four times, each time twice, 0.7 s apart. pick-pages makes of
# it what the codec is measured with.
mkdir -p /var /tmp/p; [ -e /var/run ] || ln -s /run /var/run
d=/tmp/p
godwit run -M microvm,acpi=off -cpu host -m 128 -display none -nodefaults -kernel /vmlinuz-6.12 -initrd /guest.img \
  -append 'console=ttyS0 quiet' -serial file:$d/console -qmp unix:$d/q,server=on,wait=off 2> $d/err &
n=0; until grep -q '^files' $d/console; do usleep 200000; n=$((n + 1)); [ $n -lt 600 ] || { cat $d/console $d/err; exit 1; }; done
for k in 1 2 3 4; do for moment in before after; do
  godwit qmp --qmp unix:$d/q pmemsave val=0 size=$((128 << 20)) filename=/out/$k.$moment || exit 1
  usleep 700000
done; sleep 3; done
