//! What was found, for printing and for programs.

use serde::Serialize;

/// Entries and passes beyond these are counted and not kept: a hostile stream can have any number.
pub(crate) const ENTRIES_MAX: usize = 100_000;
pub(crate) const PASSES_MAX: usize = 10_000;

#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// `migration`, `return-path`.
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    pub blocks: Vec<Block>,
    /// One for each connection: the main file, then those of `--resume`.
    pub connections: Vec<Connection>,
    pub channels: Vec<ChannelReport>,
    /// Passes over RAM: a new one begins where page offsets go back.
    pub passes: Vec<RamCounts>,
    pub total: RamCounts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageReport>,
    /// Why reading stopped before the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Block {
    pub name: String,
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped_pages_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped_pages: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
pub struct Connection {
    pub file: String,
    pub bytes: u64,
    pub entries: Vec<Entry>,
    #[serde(skip_serializing_if = "is_zero")]
    pub entries_omitted: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Connection {
    pub(crate) fn push(&mut self, entry: Entry) {
        if self.entries.len() < ENTRIES_MAX {
            self.entries.push(entry);
        } else {
            self.entries_omitted += 1;
        }
    }
}

/// A section, command or message, in the order of the stream.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub offset: u64,
    /// Nested in a package.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub packaged: bool,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum What {
    Section {
        kind: &'static str,
        name: String,
        instance: u32,
        version: u32,
        /// Of the payload.
        bytes: u64,
        /// A section of a microvm, decoded and found sound.
        known: bool,
        #[serde(skip_serializing_if = "str::is_empty")]
        device: &'static str,
        /// Why it is not known.
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        subsections: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        fields: Vec<Field>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ram: Option<RamCounts>,
    },
    Command {
        name: &'static str,
        number: u16,
        detail: String,
    },
    PackageEnd,
    EndOfStates,
    Reply {
        name: &'static str,
        detail: String,
    },
}

#[derive(Debug, Serialize)]
pub struct Field {
    pub offset: usize,
    pub bytes: usize,
    #[serde(skip)]
    pub depth: usize,
    pub name: String,
    pub value: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RamCounts {
    pub zero: u64,
    pub pages: u64,
    pub deltas: u64,
    pub delta_bytes: u64,
    pub flushes: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct ChannelReport {
    pub file: String,
    pub id: u8,
    pub method: &'static str,
    pub packets: u64,
    pub syncs: u64,
    pub pages: u64,
    pub zero: u64,
    pub data_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct Description {
    pub bytes: u64,
    /// Devices it describes; `None` if it is not the JSON it should be.
    pub devices: Option<usize>,
}

#[derive(Debug, Serialize)]
pub struct ImageReport {
    pub file: String,
    pub block: String,
    pub bytes: u64,
}
