//! `query-qmp-schema`: the tables of commands and events, in the form in which QEMU tells its own.
//!
//! Types have numbers for names, as there: what a type is called in a program is nobody's business.
//! Sizes of integers are not told either.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::commands;
use super::events;
use super::schema::{Member, Shape, Type};

/// Every command, every event, and every type that they use.
pub fn schema() -> Vec<Json> {
    let mut types = Types::default();
    let mut entries = Vec::new();
    for command in commands::all() {
        let mut entry = json!({
            "name": command.name,
            "meta-type": "command",
            "arg-type": types.object(command.arguments),
            "ret-type": types.name(&command.returns),
        });
        if command.oob {
            entry["allow-oob"] = true.into();
        }
        entries.push(entry);
    }
    for kind in events::KINDS {
        let data = types.object(kind.data);
        entries.push(json!({"name": kind.name, "meta-type": "event", "arg-type": data}));
    }
    entries.extend(types.entries);
    entries
}

/// The types told so far.
#[derive(Default)]
struct Types {
    entries: Vec<Json>,
    /// By where they stand, so that a shape may hold itself.
    objects: HashMap<*const Shape, String>,
    /// By what they are.
    others: HashMap<String, String>,
    count: usize,
}

impl Types {
    fn name(&mut self, of: &Type) -> String {
        match of {
            Type::Text => self.builtin("str", "string"),
            Type::Bool => self.builtin("bool", "boolean"),
            Type::Int | Type::U8 | Type::U16 | Type::U32 | Type::U64 => self.builtin("int", "int"),
            Type::Number => self.builtin("number", "number"),
            Type::Null => self.builtin("null", "null"),
            Type::Any => self.builtin("any", "value"),
            Type::TextOrNull => self.name(&Type::OneOf(&[Type::Text, Type::Null])),
            Type::Enum(values) => {
                let members: Vec<Json> = values.iter().map(|name| json!({"name": name})).collect();
                self.numbered(json!({"meta-type": "enum", "members": members, "values": values}))
            }
            Type::List(of) => {
                let of = self.name(of);
                let name = format!("[{of}]");
                self.once(&name, json!({"meta-type": "array", "element-type": of}))
            }
            Type::OneOf(types) => {
                let members: Vec<Json> =
                    types.iter().map(|of| json!({"type": self.name(of)})).collect();
                self.numbered(json!({"meta-type": "alternate", "members": members}))
            }
            Type::Object(shape) => self.object(shape),
        }
    }

    fn builtin(&mut self, name: &str, json_type: &str) -> String {
        self.once(name, json!({"meta-type": "builtin", "json-type": json_type}))
    }

    fn object(&mut self, shape: &'static Shape) -> String {
        if let Some(name) = self.objects.get(&std::ptr::from_ref(shape)) {
            return name.clone();
        }
        let name = self.next();
        self.objects.insert(shape, name.clone());
        let members: Vec<Json> = shape.members.iter().map(|member| self.member(member)).collect();
        let mut entry = json!({"name": name, "meta-type": "object", "members": members});
        if let Some(union) = &shape.union {
            entry["tag"] = union.tag.into();
            let branch = |case: &&'static str| {
                let shape = union.branches.iter().find(|(value, _)| value == case);
                let shape = shape.map_or(&commands::NOTHING, |(_, shape)| shape);
                json!({"case": case, "type": self.object(shape)})
            };
            entry["variants"] = union.cases(shape).iter().map(branch).collect();
        }
        self.entries.push(entry);
        name
    }

    fn member(&mut self, member: &Member) -> Json {
        let mut entry = json!({"name": member.name, "type": self.name(&member.of)});
        if member.optional {
            entry["default"] = Json::Null;
        }
        entry
    }

    /// A type under its own name.
    fn once(&mut self, name: &str, mut entry: Json) -> String {
        if self.others.insert(name.to_owned(), name.to_owned()).is_none() {
            entry["name"] = name.into();
            self.entries.push(entry);
        }
        name.to_owned()
    }

    /// A type under a number, the same for the same.
    fn numbered(&mut self, mut entry: Json) -> String {
        let what = entry.to_string();
        if let Some(name) = self.others.get(&what) {
            return name.clone();
        }
        let name = self.next();
        self.others.insert(what, name.clone());
        entry["name"] = name.as_str().into();
        self.entries.push(entry);
        name
    }

    fn next(&mut self) -> String {
        self.count += 1;
        (self.count - 1).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_name_stands_once_and_every_type_is_told() {
        let schema = schema();
        let mut names = HashSet::new();
        for entry in &schema {
            assert!(names.insert(entry["name"].as_str().unwrap()), "{entry}");
        }
        let mut used = Vec::new();
        for entry in &schema {
            used.extend(["arg-type", "ret-type", "element-type"].map(|key| &entry[key]));
            for key in ["members", "variants"] {
                used.extend(entry[key].as_array().into_iter().flatten().map(|of| &of["type"]));
            }
        }
        for name in used.into_iter().filter_map(Json::as_str) {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn every_command_and_every_argument_says_what_it_means() {
        fn silent(shape: &Shape, found: &mut Vec<&'static str>) {
            found.extend(shape.members.iter().filter(|m| m.meaning.is_empty()).map(|m| m.name));
        }
        for command in commands::all() {
            assert!(!command.does.is_empty(), "{}", command.name);
            let mut found = Vec::new();
            silent(command.arguments, &mut found);
            for (_, branch) in command.arguments.union.iter().flat_map(|union| union.branches) {
                silent(branch, &mut found);
            }
            assert!(found.is_empty(), "{}: {found:?}", command.name);
        }
    }
}
