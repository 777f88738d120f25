//! What the crate's AML lacks, or what every device's needs.

use acpi_tables::{Aml, AmlSink, aml};

/// The AML of a device: its name of four characters, what it is, its further names and methods, and
/// the resources it has, if any.
pub(crate) fn device(
    name: &str,
    id: &dyn Aml,
    more: Vec<&dyn Aml>,
    resources: Vec<&dyn Aml>,
    last: Vec<&dyn Aml>,
) -> Vec<u8> {
    let id = aml::Name::new("_HID".into(), id);
    let has_resources = !resources.is_empty();
    let resources = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(resources));
    let mut children: Vec<&dyn Aml> = vec![&id];
    children.extend(more);
    if has_resources {
        children.push(&resources);
    }
    children.extend(last);
    let mut bytes = Vec::new();
    aml::Device::new(name.into(), children).to_aml_bytes(&mut bytes);
    bytes
}

/// An interrupt of the ISA, 0 to 15: edge-triggered, active high, not shared.
pub(crate) struct Irq(pub u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // A small resource of two bytes, one bit for each interrupt.
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}
