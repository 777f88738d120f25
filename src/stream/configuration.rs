//! The section at the start of a stream that says which machine it came from.

use super::Configuration;
use super::cursor::Cursor;
use super::error::Problem;

const MACHINE_NAME_BYTES_MAX: usize = 255;
const CAPABILITIES_MAX: u32 = 64;

/// Marker, machine name and subsections; the cursor stands behind the version.
pub(super) fn configuration(
    cursor: &mut Cursor<'_>,
) -> Result<Option<Configuration>, (&'static str, usize, Problem)> {
    let mut found = Configuration::default();
    let at = cursor.at();
    let Some(marker) = cursor.u8() else { return Ok(None) };
    if marker != 0x07 {
        return Err(("marker", at, Problem::Unexpected { found: marker.into(), expected: 7 }));
    }
    let at = cursor.at();
    let Some(length) = cursor.u32() else { return Ok(None) };
    if length as usize > MACHINE_NAME_BYTES_MAX {
        let limit = MACHINE_NAME_BYTES_MAX as u64;
        return Err(("machine name length", at, Problem::TooLarge { found: length.into(), limit }));
    }
    let at = cursor.at();
    let Some(name) = cursor.take(length as usize) else { return Ok(None) };
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(("machine name", at, Problem::Says("not text".into())));
    };
    found.machine = name.to_owned();
    loop {
        let mut ahead = cursor.clone();
        match ahead.u8() {
            None => return needed(cursor, ahead),
            Some(0x05) => {}
            Some(_) => return Ok(Some(found)),
        }
        match configuration_subsection(&mut ahead, &mut found)? {
            Some(()) => *cursor = ahead,
            None => return needed(cursor, ahead),
        }
    }
}

fn needed<'a, T, E>(cursor: &mut Cursor<'a>, ahead: Cursor<'a>) -> Result<Option<T>, E> {
    *cursor = ahead;
    Ok(None)
}

fn configuration_subsection(
    cursor: &mut Cursor<'_>,
    found: &mut Configuration,
) -> Result<Option<()>, (&'static str, usize, Problem)> {
    let at = cursor.at();
    let (Some(name), Some(version)) = (cursor.pstr(), cursor.u32()) else { return Ok(None) };
    if version != 1 {
        return Err(("subsection version", at, Problem::Newer { found: version, known: 1 }));
    }
    let body = cursor.at();
    let repeated =
        |name: &str| Err(("subsection", at, Problem::Repeated { name: name.to_owned() }));
    match name {
        b"configuration/target-page-bits" => {
            let Some(bits) = cursor.u32() else { return Ok(None) };
            if bits != 12 {
                let problem = Problem::Unexpected { found: bits.into(), expected: 12 };
                return Err(("target page bits", body, problem));
            }
            if found.page_bits.replace(bits).is_some() {
                return repeated("configuration/target-page-bits");
            }
        }
        b"configuration/capabilities" => {
            let Some(count) = cursor.u32() else { return Ok(None) };
            if count > CAPABILITIES_MAX {
                let problem =
                    Problem::TooLarge { found: count.into(), limit: CAPABILITIES_MAX.into() };
                return Err(("capability count", body, problem));
            }
            if !found.capabilities.is_empty() {
                return repeated("configuration/capabilities");
            }
            let mut names = Vec::new();
            for _ in 0..count {
                let at = cursor.at();
                let Some(name) = cursor.pstr() else { return Ok(None) };
                match std::str::from_utf8(name) {
                    Ok(name @ ("x-ignore-shared" | "mapped-ram")) => names.push(name.to_owned()),
                    _ => {
                        let name = String::from_utf8_lossy(name).into_owned();
                        return Err(("capability", at, Problem::Unknown { name }));
                    }
                }
            }
            found.capabilities = names;
        }
        b"configuration/uuid" => {
            let Some(uuid) = cursor.take(16) else { return Ok(None) };
            if found.uuid.replace(uuid.try_into().expect("sixteen bytes")).is_some() {
                return repeated("configuration/uuid");
            }
        }
        _ => {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(("subsection", at, Problem::Unknown { name }));
        }
    }
    Ok(Some(()))
}
