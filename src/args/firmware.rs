//! `-fw_cfg` and `-smbios`: what a guest finds where firmware would have left it.

use super::error::{Error, Problem};
use super::keys::{Key, Keys};
use super::value;
use crate::config::{FirmwareContent, FirmwareFile, SystemInformation};

/// With the zero behind it a name has 56 bytes in fw_cfg's directory.
const NAME_MAX: usize = 55;
/// Of the command line; the directory has room for some of the machine's own beside them.
const FILES_MAX: usize = 64;

#[derive(Default)]
pub(crate) struct FileDraft {
    name: Option<String>,
    content: Vec<FirmwareContent>,
}

pub(crate) const FILE: Keys<FileDraft> = Keys {
    owner: "-fw_cfg",
    implied: Some("name"),
    table: &[
        Key::set("name", "NAME", |f, v| match v.len() {
            1..=NAME_MAX if !v.contains('\0') => {
                f.name = Some(v.into());
                Ok(())
            }
            _ => Err(Problem::Malformed("a name of 1 to 55 bytes")),
        }),
        Key::set("file", "FILE", |f, v| {
            f.content.push(FirmwareContent::File(v.into()));
            Ok(())
        }),
        Key::set("string", "TEXT", |f, v| {
            f.content.push(FirmwareContent::Text(v.into()));
            Ok(())
        }),
        Key::refuse("gen_id", "objects that make fw_cfg entries are not built"),
    ],
};

pub(crate) fn file(option: &str, text: &str, files: &mut Vec<FirmwareFile>) -> Result<(), Error> {
    let mut draft = FileDraft::default();
    FILE.read(option, text, &mut draft)?;
    let name = draft.name.ok_or_else(|| Problem::MissingKey("name=").at(option))?;
    let place = || format!("{option} name={name}");
    if draft.content.len() != 1 {
        return Err(Problem::Malformed("one of file= and string=").at(place()));
    }
    // The machine's own.
    if name.starts_with("etc/") || name == "bootorder" {
        let reason = "this name is the machine's own; names of others begin with opt/";
        return Err(Problem::Refused(reason).at(place()));
    }
    if files.iter().any(|other| other.name == name) {
        return Err(Problem::DuplicateId("a file").at(place()));
    }
    if files.len() >= FILES_MAX {
        return Err(Problem::Refused("there can be 64 files at most").at(place()));
    }
    let content = draft.content.remove(0);
    files.push(FirmwareFile { name, content });
    Ok(())
}

#[derive(Default)]
pub(crate) struct SmbiosDraft {
    kind: Option<u64>,
    system: SystemInformation,
}

pub(crate) const SMBIOS: Keys<SmbiosDraft> = Keys {
    owner: "-smbios",
    implied: None,
    table: &[
        Key::set("type", "1", |s, v| match value::number(v, 0, 255)? {
            1 => {
                s.kind = Some(1);
                Ok(())
            }
            _ => Err(Problem::Refused("only the system's table, type=1, is built")),
        }),
        Key::set("manufacturer", "TEXT", |s, v| line(v, &mut s.system.manufacturer)),
        Key::set("product", "TEXT", |s, v| line(v, &mut s.system.product)),
        Key::set("version", "TEXT", |s, v| line(v, &mut s.system.version)),
        Key::set("serial", "TEXT", |s, v| line(v, &mut s.system.serial)),
        Key::set("uuid", "UUID", |s, v| {
            s.system.system_uuid = Some(value::uuid(v)?);
            Ok(())
        }),
        Key::set("sku", "TEXT", |s, v| line(v, &mut s.system.sku)),
        Key::set("family", "TEXT", |s, v| line(v, &mut s.system.family)),
        Key::refuse("file", "only type=1, with its fields, is built"),
    ],
};

/// A string of a table, which a zero would end.
fn line(text: &str, place: &mut String) -> Result<(), Problem> {
    if text.len() > 1024 || text.contains('\0') {
        return Err(Problem::Malformed("at most 1024 bytes, none of them zero"));
    }
    *place = text.into();
    Ok(())
}

/// What several of them say adds up.
pub(crate) fn smbios(
    option: &str,
    text: &str,
    system: &mut Option<SystemInformation>,
) -> Result<(), Error> {
    let mut draft = SmbiosDraft { kind: None, system: system.clone().unwrap_or_default() };
    SMBIOS.read(option, text, &mut draft)?;
    if draft.kind.is_none() {
        return Err(Problem::MissingKey("type=").at(option));
    }
    *system = Some(draft.system);
    Ok(())
}
