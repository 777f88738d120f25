//! What programs that start QEMU's microvm put on its command line, started for real under its name.
//! Their kernels are replaced by the built-in guest; devices that are not built yet are left out, and
//! each line says which.

use crate::common::PATIENCE;
use crate::common::process::{Ended, qemus_name};
use crate::common::qmp::Client;
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts it; `@` stands for a folder of its own. It must run, and end when told to.
fn runs(who: &str, line: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let link = qemus_name(folder.path());
    for disk in ["disk.raw", "other.raw"] {
        std::fs::File::create(path(disk)).unwrap().set_len(1 << 20).unwrap();
    }
    std::fs::write(path("file"), "content").unwrap();
    let line = line.replace('@', folder.path().to_str().unwrap());
    let qmp = path("qmp");
    let child = Command::new(link)
        .args(line.split_whitespace())
        .args(["-kernel", "builtin", "-append", "ws=1"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(path("err")).unwrap())
        .spawn()
        .unwrap();
    let mut child = Ended(child);
    let said = || std::fs::read_to_string(path("err")).unwrap();
    let end = Instant::now() + PATIENCE;
    let connect = |at: &Path| Client::try_connect(at).ok();
    let mut monitor = loop {
        match connect(&qmp) {
            Some(client) => break client,
            None => assert!(child.0.try_wait().unwrap().is_none(), "{who}: {}", said()),
        }
        assert!(Instant::now() < end, "{who}: {}", said());
        std::thread::sleep(Duration::from_millis(5));
    };
    monitor.negotiate();
    assert_eq!(monitor.ask("query-status", json!({}))["status"], "running", "{who}: {}", said());
    monitor.ask("quit", json!({}));
    assert!(child.0.wait().unwrap().success(), "{who}: {}", said());
}

#[test]
fn the_wireguard_selftest() {
    runs(
        "Linux, tools/testing/selftests/wireguard/qemu",
        "-nodefaults -nographic -smp 2 -machine microvm,accel=kvm,pit=off,pic=off,rtc=off,acpi=off -cpu host -m 64M \
         -chardev file,path=@/result,id=result -device virtio-serial-device \
         -device virtserialport,chardev=result -serial stdio -monitor none -no-reboot",
    );
}

#[test]
fn exec_sandbox() {
    runs(
        "exec-sandbox",
        "-nodefaults -nographic -no-user-config \
         -M microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=off,mem-merge=on,dump-guest-core=off,memory-backend=mem0 \
         -cpu host,-svm,-vmx -smp 1,maxcpus=1 -m 64M \
         -object memory-backend-file,id=mem0,size=64M,mem-path=@/memory,share=on \
         -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
         -run-with exit-with-parent=on,async-teardown=on -object iothread,id=io0,thread-pool-min=0,thread-pool-max=8 \
         -drive id=hd0,if=none,file=@/disk.raw,format=raw,cache=unsafe,aio=io_uring,discard=unmap,detect-zeroes=unmap,werror=report,rerror=report,copy-on-read=off,bps=10485760,bps_max=20971520,iops=1000,iops_max=2000,file.locking=off \
         -device virtio-blk-device,drive=hd0,serial=root,iothread=io0,num-queues=1,queue-size=128,event_idx=off \
         -device virtio-serial-device,max_ports=3 -chardev socket,id=c0,path=@/console,server=on,wait=off \
         -device virtconsole,nr=0,chardev=c0 -chardev socket,id=c1,path=@/port,server=on,wait=off \
         -device virtserialport,nr=1,name=a,chardev=c1 -object rng-random,id=rng0,filename=/dev/urandom \
         -device virtio-rng-device,rng=rng0,max-bytes=256,period=1000 \
         -device virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on \
         -netdev stream,id=n0,server=off,addr.type=unix,addr.path=@/net,reconnect-ms=250 \
         -device virtio-net-device,netdev=n0,mq=off,csum=off,gso=off,host_tso4=off -nic none",
    );
}

#[test]
fn hypeman() {
    // Without its vhost-vsock-device.
    runs(
        "hypeman",
        "-machine microvm,accel=kvm -no-user-config -nodefaults -nographic -cpu host -m 64 -serial null \
         -drive file=@/disk.raw,format=raw,if=none,readonly=on,file.locking=off,throttling.bps-total=1000000,throttling.bps-total-max=2000000,id=d \
         -device virtio-blk-device,drive=d -object iothread,id=io0 \
         -device virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on,free-page-hint=on,iothread=io0",
    );
}

#[test]
fn smolvm() {
    runs(
        "SmolVM",
        "-machine microvm,accel=kvm,acpi=on,pcie=off,pic=off,pit=off,rtc=on -rtc base=utc,clock=host -monitor none \
         -m 64M -cpu host -nodefaults -display none -serial null \
         -drive file=@/disk.raw,format=raw,if=none,id=d0 -device virtio-blk-device,drive=d0",
    );
}

#[test]
fn microvm_nix() {
    // Without its i8042, and with datagrams for its tap.
    runs(
        "microvm.nix",
        "-name vm -M microvm,accel=kvm:tcg,acpi=on,mem-merge=on,pcie=off,pic=off,pit=off,rtc=on,usb=off -enable-kvm \
         -cpu host,+x2apic,-sgx -run-with user=nobody -m 64 -smp 2 -nodefaults -no-user-config -no-reboot \
         -display none -serial null -smbios type=1,uuid=01020304-0506-0708-090a-0b0c0d0e0f10 \
         -fw_cfg name=opt/io.systemd.credentials/a,file=@/file -device virtio-rng-device \
         -device virtio-balloon-device,free-page-reporting=on \
         -drive id=vda,format=raw,if=none,file=@/disk.raw,aio=io_uring,discard=unmap,cache=none,read-only=off \
         -device virtio-blk-device,drive=vda \
         -drive id=vdb,format=raw,if=none,file=@/other.raw,aio=io_uring -device virtio-blk-device,drive=vdb \
         -netdev dgram,id=n,local.type=unix,local.path=@/here,remote.type=unix,remote.path=@/there \
         -device virtio-net-device,netdev=n,mac=02:00:00:00:00:01",
    );
}

#[test]
fn virtme_ng() {
    // Without vhost-user-fs-device and PCI Express.
    runs(
        "virtme-ng",
        "-machine accel=kvm:tcg -M microvm,accel=kvm,pcie=off,rtc=on -cpu host,topoext=on -m 64M \
         -object memory-backend-memfd,id=mem,size=64M,share=on -numa node,memdev=mem -name x -parallel none -net none \
         -vga none -display none -echr 1 -device virtio-serial-device \
         -chardev file,id=ret,path=@/ret -device virtserialport,name=virtme.ret,chardev=ret \
         -device virtio-serial-device -chardev stdio,id=console,signal=off,mux=on -serial chardev:console -mon chardev=console \
         -device virtconsole,chardev=console",
    );
}
