//! `-device`: what the machine gets beyond its own parts.

use super::error::Problem;
use super::keys::{Key, Keys};
use super::machine::MachineDraft;
use super::value;

const REFUSED: &str = "virtio devices are not built yet; the only device is vmcoreinfo";

pub const DEVICE: Keys<MachineDraft> = Keys {
    owner: "vmcoreinfo",
    implied: Some("driver"),
    table: &[
        Key::set("driver", "vmcoreinfo", |m, v| match v {
            "vmcoreinfo" if m.board.vmcoreinfo => {
                Err(Problem::Refused("there can be one vmcoreinfo device only"))
            }
            "vmcoreinfo" => {
                m.board.vmcoreinfo = true;
                Ok(())
            }
            _ => Err(Problem::Refused(REFUSED)),
        }),
        Key::set("id", "ID", |_, v| value::id(v).map(drop)),
    ],
};
