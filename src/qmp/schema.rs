//! The shape of arguments, written down once per command: it checks what clients send and describes
//! it to those who ask.
//!
//! Checks run member by member in the order of the table, as QEMU's visitors do: a missing or badly
//! typed member is reported before an unknown one, and nothing has had an effect yet.

use super::error::Error;
use super::json::Value;

/// One member of an object.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub name: &'static str,
    pub optional: bool,
    pub of: Type,
    /// What it means, for people; empty where its object is not sent by them.
    pub meaning: &'static str,
}

/// A member that has to be there.
pub(crate) const fn required(name: &'static str, of: Type) -> Member {
    Member { name, optional: false, of, meaning: "" }
}

/// A member that may be left out; `null` is still the wrong type for it.
pub(crate) const fn optional(name: &'static str, of: Type) -> Member {
    Member { name, optional: true, of, meaning: "" }
}

impl Member {
    /// Says what it means, for `godwit qmp --help COMMAND`.
    pub(crate) const fn means(self, meaning: &'static str) -> Member {
        Member { meaning, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Type {
    Text,
    Bool,
    /// Signed, 64 bits.
    Int,
    U8,
    U16,
    U32,
    /// 64 bits; negative numbers are accepted and wrap, as in QEMU.
    U64,
    Number,
    Null,
    /// A string, or `null`.
    TextOrNull,
    /// One of these strings.
    Enum(&'static [&'static str]),
    List(&'static Type),
    Object(&'static Shape),
    /// Whatever fits one of these; told apart by their JSON type.
    OneOf(&'static [Type]),
    /// Anything at all.
    Any,
}

/// The members of an object; with `union`, some of them depend on the value of one.
#[derive(Debug)]
pub struct Shape {
    pub members: &'static [Member],
    pub union: Option<Union>,
    /// There may be others, which whoever takes the object checks. The schema does not tell, as
    /// QEMU's does not.
    pub open: bool,
}

impl Shape {
    pub(crate) const fn of(members: &'static [Member]) -> Shape {
        Shape { members, union: None, open: false }
    }

    pub(crate) const fn open(members: &'static [Member]) -> Shape {
        Shape { members, union: None, open: true }
    }

    /// With members that depend on the value of one.
    pub(crate) const fn tagged(members: &'static [Member], union: Union) -> Shape {
        Shape { members, union: Some(union), open: false }
    }
}

/// `tag` names a member of type [`Type::Enum`]; its value adds the members of one branch. A value
/// without branch adds none.
#[derive(Debug)]
pub struct Union {
    pub tag: &'static str,
    pub branches: &'static [(&'static str, &'static Shape)],
}

impl Union {
    /// The values that the tag can have in `shape`, which this is part of.
    pub(crate) fn cases(&self, shape: &Shape) -> &'static [&'static str] {
        let tag = shape.members.iter().find(|member| member.name == self.tag);
        match tag.map(|member| member.of) {
            Some(Type::Enum(values)) => values,
            _ => &[],
        }
    }
}

impl Type {
    /// Whether `value` is of this type, as clients with typed answers take it.
    pub fn check(&self, value: &Value) -> Result<(), Error> {
        check_value(value, self, "return", None)
    }
}

/// Checks `object` against `shape`, named `path` in complaints (empty for the arguments
/// themselves).
pub(crate) fn check(object: &[(String, Value)], shape: &Shape, path: &str) -> Result<(), Error> {
    let mut known = Vec::new();
    check_members(object, shape, path, &mut known)?;
    match object.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(_) if shape.open => Ok(()),
        Some((name, _)) => Err(Error::generic(format_args!(
            "Parameter '{}' is unexpected",
            member_path(path, name)
        ))),
    }
}

fn check_members(
    object: &[(String, Value)],
    shape: &Shape,
    path: &str,
    known: &mut Vec<&'static str>,
) -> Result<(), Error> {
    let find = |name| object.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    for member in shape.members {
        known.push(member.name);
        let path = member_path(path, member.name);
        match find(member.name) {
            Some(value) => check_value(value, &member.of, &path, Some(member.name))?,
            None if member.optional => {}
            None => return Err(Error::generic(format_args!("Parameter '{path}' is missing"))),
        }
    }
    let Some(union) = &shape.union else { return Ok(()) };
    let tag = find(union.tag).and_then(Value::as_str);
    match union.branches.iter().find(|(value, _)| Some(*value) == tag) {
        Some((_, branch)) => check_members(object, branch, path, known),
        None => Ok(()),
    }
}

fn member_path(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// `name` is the last part of `path`, if that is a member's name: QEMU knows no more when it
/// complains about a value.
fn check_value(value: &Value, of: &Type, path: &str, name: Option<&str>) -> Result<(), Error> {
    let expected = |what| {
        Error::generic(format_args!("Invalid parameter type for '{path}', expected: {what}"))
    };
    let expects = |what| Error::generic(format_args!("Parameter '{path}' expects {what}"));
    let accept = |yes: bool, error: Error| if yes { Ok(()) } else { Err(error) };
    let name = name.unwrap_or("null");
    let within = |max: u64, type_name| {
        let number = wrapping_u64(value).ok_or_else(|| expects("uint64"))?;
        let text = format_args!("Parameter '{name}' expects {type_name}").to_string();
        accept(number <= max, Error::generic(text))
    };
    match of {
        Type::Text => accept(value.as_str().is_some(), expected("string")),
        Type::Bool => accept(matches!(value, Value::Bool(_)), expected("boolean")),
        Type::Null => accept(*value == Value::Null, expected("null")),
        Type::TextOrNull => {
            accept(matches!(value, Value::Text(_) | Value::Null), expected("StrOrNull"))
        }
        Type::Int => accept(value.as_i64().is_some(), expected("integer")),
        Type::Number => accept(value.as_f64().is_some(), expected("number")),
        Type::U64 => accept(wrapping_u64(value).is_some(), expects("uint64")),
        Type::U32 => within(u32::MAX.into(), "uint32_t"),
        Type::U16 => within(u16::MAX.into(), "uint16_t"),
        Type::U8 => within(u8::MAX.into(), "uint8_t"),
        Type::Enum(accepted) => {
            let text = value.as_str().ok_or_else(|| expected("string"))?;
            accept(
                accepted.contains(&text),
                Error::generic(format_args!("Parameter '{name}' does not accept value '{text}'")),
            )
        }
        Type::List(of) => {
            let Value::Array(items) = value else { return Err(expected("array")) };
            items.iter().enumerate().try_for_each(|(index, item)| {
                check_value(item, of, &format!("{path}[{index}]"), None)
            })
        }
        Type::Object(shape) => {
            let Value::Object(members) = value else { return Err(expected("object")) };
            check(members, shape, path)
        }
        Type::OneOf(types) => {
            let fits = |of: &Type| check_value(value, of, path, None).is_ok();
            accept(types.iter().any(fits), expected("another type"))
        }
        Type::Any => Ok(()),
    }
}

/// An unsigned argument as QEMU takes it: a negative number that fits 64 bits wraps.
pub(super) fn wrapping_u64(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_i64().map(|negative| negative as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::json::Reader;

    static CAPABILITY: Shape = Shape::of(&[
        required("capability", Type::Enum(&["xbzrle", "events"])),
        required("state", Type::Bool),
    ]);
    static CAPABILITIES: Shape = Shape::of(&[
        required("capabilities", Type::List(&Type::Object(&CAPABILITY))),
        optional("channels", Type::U8),
        optional("limit", Type::U64),
        optional("value", Type::Int),
        optional("creds", Type::TextOrNull),
        optional("enable", Type::List(&Type::Enum(&["oob"]))),
    ]);
    static CHAR: Shape = Shape::of(&[optional("path", Type::Text)]);
    static BACKEND: Shape = Shape::tagged(
        &[required("type", Type::Enum(&["null", "file"]))],
        Union { tag: "type", branches: &[("file", &CHAR)] },
    );
    static ADD: Shape = Shape::of(&[required("backend", Type::Object(&BACKEND))]);

    fn refusal(shape: &Shape, text: &str) -> String {
        let Some(Ok(Value::Object(object))) = Reader::new().next(&mut text.as_bytes()) else {
            panic!("{text}")
        };
        check(&object, shape, "").map_or_else(|e| e.desc, |()| "accepted".to_owned())
    }

    #[test]
    fn faults_are_named_as_qemu_names_them() {
        for (arguments, want) in [
            ("{}", "Parameter 'capabilities' is missing"),
            (
                "{'capabilities': null}",
                "Invalid parameter type for 'capabilities', expected: array",
            ),
            ("{'capabilities': [], 'x': 1}", "Parameter 'x' is unexpected"),
            ("{'capabilities': [{}], 'x': 1}", "Parameter 'capabilities[0].capability' is missing"),
            (
                "{'capabilities': [1]}",
                "Invalid parameter type for 'capabilities[0]', expected: object",
            ),
            (
                "{'capabilities': [{'capability': 'no', 'state': 1}]}",
                "Parameter 'capability' does not accept value 'no'",
            ),
            (
                "{'capabilities': [{'capability': 'events', 'state': 1}]}",
                "Invalid parameter type for 'capabilities[0].state', expected: boolean",
            ),
            (
                "{'capabilities': [{'capability': 'events', 'state': true, 'x': 1}]}",
                "Parameter 'capabilities[0].x' is unexpected",
            ),
            ("{'capabilities': [], 'channels': 256}", "Parameter 'channels' expects uint8_t"),
            ("{'capabilities': [], 'channels': -1}", "Parameter 'channels' expects uint8_t"),
            ("{'capabilities': [], 'channels': 255}", "accepted"),
            ("{'capabilities': [], 'limit': -1}", "accepted"),
            ("{'capabilities': [], 'limit': '1G'}", "Parameter 'limit' expects uint64"),
            (
                "{'capabilities': [], 'limit': 18446744073709551616}",
                "Parameter 'limit' expects uint64",
            ),
            (
                "{'capabilities': [], 'value': 1.0}",
                "Invalid parameter type for 'value', expected: integer",
            ),
            (
                "{'capabilities': [], 'creds': 1}",
                "Invalid parameter type for 'creds', expected: StrOrNull",
            ),
            ("{'capabilities': [], 'creds': null}", "accepted"),
            (
                "{'capabilities': [], 'enable': ['no']}",
                "Parameter 'null' does not accept value 'no'",
            ),
            (
                "{'capabilities': [], 'enable': [1]}",
                "Invalid parameter type for 'enable[0]', expected: string",
            ),
        ] {
            assert_eq!(refusal(&CAPABILITIES, arguments), want, "{arguments}");
        }
    }

    #[test]
    fn a_branch_adds_members() {
        assert_eq!(refusal(&ADD, "{'backend': {'type': 'file', 'path': 'x'}}"), "accepted");
        assert_eq!(
            refusal(&ADD, "{'backend': {'type': 'null', 'path': 'x'}}"),
            "Parameter 'backend.path' is unexpected"
        );
    }
}
