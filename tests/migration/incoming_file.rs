//! `godwit run -incoming`: guests that QEMU recorded go on in a process of their own, from a file,
//! at whatever rate their time stamp counter ran.

use crate::common::vectors::Vector;
use crate::common::vm::{Launch, PATIENCE, Vm};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Starts a machine that takes `stream` from the file `stream` of its folder, or from where
/// `incoming` says.
fn start(stream: &[u8], incoming: &str, more: &[&str]) -> Vm {
    let launch = Launch::alone().no_guest().memory(16).incoming(incoming).words(more);
    fs::write(launch.path("stream"), stream).unwrap();
    launch.start()
}

/// The memory that the vector's guest writes.
fn window(vm: &mut Vm, vector: &Vector) -> Vec<u8> {
    let number = |key: &str| vector.meta["guest"][key].as_u64().unwrap();
    let (base, bytes, file) = (number("base"), number("pages") * 4096, vm.path("window"));
    vm.ask("pmemsave", json!({"val": base, "size": bytes, "filename": file}));
    fs::read(file).unwrap()
}

/// Waits until the guest has come, and goes on.
fn goes_on(vm: &mut Vm, vector: &Vector) {
    vm.session().wait_until_running();
    for _ in 0..2 {
        let (now, end) = (window(vm, vector), Instant::now() + PATIENCE);
        while window(vm, vector) == now {
            assert!(Instant::now() < end, "the guest's memory does not change: {}", vm.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A TSC of `khz` in every vCPU.
fn at(mut stream: Vec<u8>, khz: u64) -> Vec<u8> {
    let name = b"cpu/tsc_khz\0\0\0\x01";
    let found: Vec<_> = stream.windows(name.len()).enumerate().filter(|(_, w)| w == name).collect();
    let places: Vec<_> = found.iter().map(|(at, _)| at + name.len()).collect();
    assert!(!places.is_empty());
    for place in places {
        stream[place..place + 8].copy_from_slice(&khz.to_be_bytes());
    }
    stream
}

/// Whether this host could not run a guest with a TSC of 1 MHz.
fn cannot_scale() -> bool {
    !kvm_ioctls::Kvm::new().unwrap().check_extension(kvm_ioctls::Cap::TscControl)
}

#[test]
fn recorded_guests_go_on() {
    for (name, more) in [
        ("kvm-acpi-off-16m", &[][..]),
        ("kvm-host-cpu-16m", &[][..]),
        ("kvm-2cpu-16m", &["-smp", "2"][..]),
        ("mapped-ram-16m", &["-M", "rtc=on"][..]),
    ] {
        let vector = Vector::named(name);
        let mut vm = start(&vector.main(), "file:@DIR@/stream", more);
        goes_on(&mut vm, &vector);
    }
}

/// A file is the only copy of its guest, so that it goes on, and a person is told what may be wrong
/// then.
#[test]
fn a_tsc_that_cannot_be_scaled_is_told_when_the_stream_is_a_file() {
    let vector = Vector::named("kvm-acpi-off-16m");
    let mut vm = start(&at(vector.main(), 1000), "file:@DIR@/stream", &[]);
    if cannot_scale() {
        goes_on(&mut vm, &vector);
        let errors = vm.stderr();
        assert!(errors.contains("time stamp counter runs at 1000 kHz, this host's at"), "{errors}");
    }
}

/// A live source keeps its guest when it is refused.
#[test]
fn a_tsc_that_cannot_be_scaled_is_refused_when_the_stream_is_a_connection() {
    let stream = at(Vector::named("kvm-acpi-off-16m").main(), 1000);
    let mut vm = start(&stream, "unix:@DIR@/migrate", &[]);
    let mut source = UnixStream::connect(vm.path("migrate")).unwrap();
    source.write_all(&stream).unwrap();
    if cannot_scale() {
        assert_eq!(vm.exit_code(), Some(1));
        let errors = vm.stderr();
        assert!(errors.contains("time stamp counter runs at 1000 kHz, this host's at"), "{errors}");
        assert!(errors.contains("KVM cannot scale it"), "{errors}");
    }
}
