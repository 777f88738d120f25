//! The devices of a command line and of a stream, compared before anything is changed.

use super::*;
use crate::args::{self, Request};

fn config(ending: &str) -> Config {
    let line = format!("-M microvm,acpi=off -kernel builtin -append ws=1 {ending}");
    match args::parse(line.split_whitespace().map(Into::into)) {
        Ok(Request::Run(config)) => *config,
        Ok(other) => panic!("{other:?}"),
        Err(errors) => panic!("{errors}"),
    }
}

fn refused(ending: &str) -> String {
    let line = format!("-M microvm,acpi=off -kernel builtin {ending}");
    args::parse(line.split_whitespace().map(Into::into)).unwrap_err().to_string()
}

const RNG: &str = "-device virtio-rng-device";

#[test]
fn the_kernel_is_told_of_each_transport_with_a_device() {
    let told = |ending: &str| config(ending).boot.unwrap().cmdline;
    // As QEMU 10.0.2 has them.
    let first = "ws=1 virtio_mmio.device=512@0xfeb00e00:12";
    assert_eq!(told(RNG), first);
    let both = format!("{first} virtio_mmio.device=512@0xfeb00c00:11");
    assert_eq!(told(&format!("{RNG} {RNG}")), both);
    assert_eq!(told(&format!("{RNG} -M auto-kernel-cmdline=off")), "ws=1");
    assert_eq!(told(""), "ws=1");
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let nine = [RNG; 9].join(" ");
    assert!(refused(&nine).contains("eight virtio transports"));
    config(&[RNG; 8].join(" "));
    let near = refused(&format!("{RNG},rng=r1 -object rng-builtin,id=r0"));
    assert!(near.contains("no source of entropy") && near.contains("r0"), "{near}");
    assert!(refused("-object rng-builtin,id=r,filename=x").contains("only rng-random"));
    assert!(refused("-object rng-egd,id=r").contains("rng-random"));
    assert!(refused(&format!("{RNG},packed=on")).contains("packed rings"));
    assert!(refused("-global virtio-mmio.force-legcay=off").contains("force-legacy"));
    assert!(refused("-object rng-builtin,id=r -object rng-random,id=r").contains("already"));
}

#[test]
fn other_devices_than_the_streams_are_refused_by_name() {
    let modern = "-global virtio-mmio.force-legacy=off";
    let state = |legacy: bool| {
        let rig = rig(legacy, &[], None);
        rig.save()
    };
    let refusal = |ending: &str, sections: &Sections| {
        missing(&config(ending), sections).map(|m| format!("{} {}", m.name, m.why))
    };
    assert_eq!(refusal(RNG, &state(true)), None);
    assert_eq!(refusal(&format!("{RNG} {modern}"), &state(false)), None);
    assert_eq!(refusal("", &Sections::default()), None);
    for (ending, sections, words) in [
        ("", state(true), "another device there, or none"),
        (RNG, Sections::default(), "missing; this machine has -device virtio-rng-device"),
        (RNG, state(false), "force-legacy=off"),
    ] {
        let text = refusal(ending, &sections).unwrap();
        assert!(text.contains(words) && text.starts_with(NAME), "{text}");
    }
    let both = refusal(&format!("{RNG} {RNG}"), &state(true)).unwrap();
    assert!(both.starts_with("virtio-mmio@00000000feb00c00/virtio-rng"), "{both}");
}
