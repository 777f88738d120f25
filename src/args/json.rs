//! The JSON form of an option: an object whose members stand for `key=value`.

use super::error::Problem;
use super::keys::Pair;

/// Whether a list of texts is one: its key several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lists {
    Allowed,
    Refused,
}

/// The members of a JSON object as keys and values, as [`flatten`] has them.
pub(super) fn json_pairs(text: &str, lists: Lists) -> Result<Vec<Pair>, Problem> {
    let members = serde_json::from_str(text).map_err(|_| SHAPE)?;
    flatten(members, lists).map_err(|_| SHAPE)
}

pub(super) const SHAPE: Problem =
    Problem::Malformed("a JSON object of strings, numbers and booleans");

pub(super) type Members = serde_json::Map<String, serde_json::Value>;

/// The members as keys and values; those of an object inside have its name and a dot in front.
///
/// # Errors
/// The key of what is none of it.
pub(super) fn flatten(members: Members, lists: Lists) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    add_members("", members, lists, &mut pairs)?;
    Ok(pairs)
}

fn add_members(
    prefix: &str,
    members: Members,
    lists: Lists,
    pairs: &mut Vec<Pair>,
) -> Result<(), String> {
    use serde_json::Value::{Array, Bool, Number, Object, String as Text};
    for (key, member) in members {
        let key = format!("{prefix}{key}");
        match member {
            Text(text) => pairs.push((key, Some(text))),
            Bool(on) => pairs.push((key, Some(if on { "on".into() } else { "off".into() }))),
            Number(number) => pairs.push((key, Some(number.to_string()))),
            // Of an image: it stands on nothing.
            serde_json::Value::Null if key.rsplit('.').next() == Some("backing") => {
                pairs.push((key, Some(String::new())));
            }
            Object(members) => add_members(&format!("{key}."), members, lists, pairs)?,
            Array(items) if lists == Lists::Allowed && !items.is_empty() => {
                for item in items {
                    let text = item.get("str").unwrap_or(&item).as_str();
                    let text = text.ok_or_else(|| key.clone())?;
                    pairs.push((key.clone(), Some(text.into())));
                }
            }
            _ => return Err(key),
        }
    }
    Ok(())
}
