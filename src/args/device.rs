//! `-device`: what the machine gets beyond its own parts.

use super::error::{Error, Problem};
use super::keys::{rows, split};
use super::value;
use crate::config::Device;
use crate::devices::Pluggable;
use crate::machine::PARTS;
use crate::suggest::nearest;

/// Every device that has a name for `-device`, those included that cannot be had yet.
pub(crate) fn all() -> impl Iterator<Item = &'static Pluggable> {
    PARTS.iter().filter_map(|part| part.device.as_ref())
}

fn available() -> impl Iterator<Item = &'static Pluggable> {
    all().filter(|device| (device.refuses)(&[]).is_none())
}

/// Adds what was written behind `-device`.
pub(crate) fn add(option: &str, text: &str, devices: &mut Vec<Device>) -> Result<(), Error> {
    let mut pairs = split(text, Some("driver"));
    let mut take = |name: &str| {
        let at = pairs.iter().position(|(key, _)| key == name)?;
        pairs.remove(at).1
    };
    let driver = take("driver").ok_or_else(|| Problem::MissingKey("driver").at(option))?;
    let place = || format!("{option} {driver}");
    let id = take("id").map(|id| value::id(&id)).transpose().map_err(|e| e.at(place()))?;
    let device = all().find(|device| device.driver == driver).ok_or_else(|| {
        let accepted: Vec<_> = available().map(|device| device.driver).collect();
        let nearest = nearest(&driver, accepted.iter().copied()).map(String::from);
        Problem::UnknownValue { accepted, nearest }.at(place())
    })?;
    if let Some(reason) = (device.refuses)(devices) {
        return Err(Problem::Refused(reason).at(place()));
    }
    if id.is_some() && devices.iter().any(|other| other.id == id) {
        return Err(Problem::DuplicateId("a device").at(place()));
    }
    let properties = (device.read)(option, &pairs)?;
    devices.push(Device { driver: device.driver, id, properties });
    Ok(())
}

/// For `-device help`: each driver, and what it is for.
pub(crate) fn drivers() -> Vec<String> {
    let row = |device: &Pluggable| match device.bus {
        "" => format!("name \"{}\", desc \"{}\"", device.driver, device.help),
        bus => format!("name \"{}\", bus {bus}, desc \"{}\"", device.driver, device.help),
    };
    available().map(row).collect()
}

/// For `-device DRIVER,help`: the properties of that driver.
pub(crate) fn properties(text: &str) -> Option<Vec<String>> {
    let driver = text.strip_suffix(",help").or_else(|| text.strip_suffix(",?"))?;
    let device = available().find(|device| device.driver == driver)?;
    Some(rows(&(device.properties)()).into_iter().chain(["id=ID".to_owned()]).collect())
}
