//! Writing the outer framing: header, configuration, sections, end.

use super::cursor::put_pstr;
use super::limits::{MAGIC, VERSION};

/// What opens a stream: which machine it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Machine type, `microvm`.
    pub machine: String,
    /// Of the two capabilities that are compared: `x-ignore-shared`, `mapped-ram`.
    pub capabilities: Vec<String>,
    pub uuid: Option<[u8; 16]>,
    /// Not sent on x86, whose page size is fixed.
    pub page_bits: Option<u32>,
}

impl Configuration {
    /// Appends magic, version and configuration.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.push(0x07);
        out.extend_from_slice(&(self.machine.len() as u32).to_be_bytes());
        out.extend_from_slice(self.machine.as_bytes());
        if let Some(bits) = self.page_bits {
            subsection(out, "configuration/target-page-bits");
            out.extend_from_slice(&bits.to_be_bytes());
        }
        if !self.capabilities.is_empty() {
            subsection(out, "configuration/capabilities");
            out.extend_from_slice(&(self.capabilities.len() as u32).to_be_bytes());
            for name in &self.capabilities {
                put_pstr(out, name);
            }
        }
        if let Some(uuid) = self.uuid {
            subsection(out, "configuration/uuid");
            out.extend_from_slice(&uuid);
        }
    }
}

fn subsection(out: &mut Vec<u8>, name: &str) {
    out.push(0x05);
    put_pstr(out, name);
    out.extend_from_slice(&1u32.to_be_bytes());
}

/// Which of its appearances a section makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    Start = 1,
    Part = 2,
    End = 3,
    Full = 4,
}

impl SectionKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "START",
            Self::Part => "PART",
            Self::End => "END",
            Self::Full => "FULL",
        }
    }
}

/// A section's identity: what START and FULL say, and what the id stands for afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionHeader {
    /// The writer's own number for it.
    pub id: u32,
    pub name: String,
    pub instance: u32,
    pub version: u32,
}

impl SectionHeader {
    /// Appends what stands before the payload.
    pub fn write(&self, kind: SectionKind, out: &mut Vec<u8>) {
        out.push(kind as u8);
        out.extend_from_slice(&self.id.to_be_bytes());
        if matches!(kind, SectionKind::Start | SectionKind::Full) {
            put_pstr(out, &self.name);
            out.extend_from_slice(&self.instance.to_be_bytes());
            out.extend_from_slice(&self.version.to_be_bytes());
        }
    }

    /// Appends what stands behind the payload.
    pub fn write_footer(&self, out: &mut Vec<u8>) {
        out.push(0x7e);
        out.extend_from_slice(&self.id.to_be_bytes());
    }
}

impl std::fmt::Display for SectionHeader {
    /// As messages name a section: `cpu`, or `cpu instance 1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.instance {
            0 => write!(f, "{}", self.name),
            instance => write!(f, "{} instance {instance}", self.name),
        }
    }
}

/// Appends the end of the list of sections.
pub fn end_of_states(out: &mut Vec<u8>) {
    out.push(0x00);
}

/// Appends the description that ends a precopy stream.
pub fn description(out: &mut Vec<u8>, json: &str) {
    out.push(0x06);
    out.extend_from_slice(&(json.len() as u32).to_be_bytes());
    out.extend_from_slice(json.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_recorded_bytes() {
        let mut out = Vec::new();
        Configuration { machine: "microvm".into(), ..Configuration::default() }.write(&mut out);
        assert_eq!(out, b"QEVM\0\0\0\x03\x07\0\0\0\x07microvm");
    }

    #[test]
    fn part_and_footer_carry_the_id_alone() {
        let section = SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 };
        let mut out = Vec::new();
        section.write(SectionKind::Part, &mut out);
        section.write_footer(&mut out);
        assert_eq!(out, [2, 0, 0, 0, 2, 0x7e, 0, 0, 0, 2]);
        out.clear();
        section.write(SectionKind::Start, &mut out);
        assert_eq!(out.len(), 14 + 3);
    }
}
