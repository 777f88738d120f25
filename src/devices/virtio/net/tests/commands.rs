//! What the control queue says, and what comes of it.

use super::*;

#[test]
fn commands_choose_what_is_heard() {
    let mut rig = rig();
    rig.start(feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_VLAN);
    let (group, other): (Mac, Mac) = ([1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 1]);
    let tables = |unicast: &[Mac], multicast: &[Mac]| {
        let table =
            |macs: &[Mac]| [&(macs.len() as u32).to_le_bytes(), macs.as_flattened()].concat();
        [table(unicast), table(multicast)].concat()
    };
    assert_eq!(rig.command(0, 0, &[0]), 0);
    assert_eq!(rig.command(1, 0, &tables(&[other], &[group])), 0);
    assert_eq!(rig.command(1, 1, &[2, 2, 2, 2, 2, 2]), 0);
    assert_eq!(rig.command(2, 0, &5u16.to_le_bytes()), 0);
    let filter = rig.filter();
    assert!(!filter.promiscuous && filter.unicast == [other] && filter.multicast == [group]);
    assert!(filter.mac == [2; 6] && filter.has_vlan(5) && !filter.has_vlan(6));
    rig.give(RECEIVE, &[], 2000);
    for to in [MAC, [3; 6], group] {
        rig.comes(&frame(to, b"x"));
    }
    assert_eq!(rig.came(RECEIVE, 0)[12..], frame(group, b"x"));
    // Nonsense changes nothing.
    for (class, command, data) in [
        (0, 6, &[1][..]),
        (0, 0, &[]),
        (1, 0, &[255, 255, 255, 255, 0, 0]),
        (1, 1, &[1, 2, 3]),
        (2, 0, &5000u16.to_le_bytes()),
        (3, 0, &[]),
        (4, 0, &[2, 0]),
        (5, 0, &[0; 8]),
        (9, 9, &[]),
    ] {
        assert_eq!(rig.command(class, command, data), 1, "{class} {command}");
    }
    assert_eq!(rig.filter(), filter);
    assert_eq!(rig.command(1, 0, &tables(&[other; 65], &[group])), 0);
    assert!(rig.filter().unicast_overflow && rig.filter().unicast.is_empty());
}

#[test]
fn offloads_are_what_was_agreed_upon_until_the_guest_wants_others() {
    let mut rig = rig();
    let features = feature::GUEST_CSUM | feature::GUEST_TSO4;
    rig.start(features | feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS);
    wait("offloads", || rig.wire.offloads.load(Ordering::SeqCst) == 3);
    assert_eq!(rig.command(5, 0, &feature::GUEST_CSUM.to_le_bytes()), 0);
    assert_eq!(rig.wire.offloads.load(Ordering::SeqCst), 1, "told before the answer");
    assert_eq!(rig.command(5, 0, &feature::GUEST_TSO6.to_le_bytes()), 1);
    assert_eq!(rig.wire.offloads.load(Ordering::SeqCst), 1);
    assert_eq!(part(&rig.save()).offloads, Some(feature::GUEST_CSUM));
}

#[test]
fn a_tap_device_is_asked_for_what_its_kernel_takes() {
    use feature::*;
    for (offloads, flags) in [
        (GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO, 0x1f),
        (GUEST_CSUM | GUEST_TSO6 | GUEST_ECN, 0xd),
        (GUEST_CSUM | GUEST_ECN, 1),
        (GUEST_CSUM | GUEST_USO4 | GUEST_ECN, 1),
        (GUEST_CSUM | GUEST_USO4 | GUEST_USO6, 0x61),
        (GUEST_TSO4 | GUEST_UFO, 0),
    ] {
        assert_eq!(control::tap_flags(offloads), flags, "{offloads:#x}");
    }
}
