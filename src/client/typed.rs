//! Commands as a machine describes them: words become arguments of the right types, and are
//! completed.

use super::qmp::{Client, Error};
use crate::args;
use crate::suggest::nearest;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The answer of `query-qmp-schema`, by name.
pub(crate) struct Schema(HashMap<String, Value>);

/// One that a command takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Argument {
    pub name: String,
    /// Its type's name.
    pub of: String,
    pub optional: bool,
}

impl Schema {
    pub(crate) fn ask(client: &mut Client) -> Result<Schema, Error> {
        Ok(Schema::of(client.execute("query-qmp-schema", json!({}))?))
    }

    pub(crate) fn of(answer: Value) -> Schema {
        let Value::Array(entries) = answer else { return Schema(HashMap::new()) };
        let named = |entry: Value| Some((entry["name"].as_str()?.to_owned(), entry));
        Schema(entries.into_iter().filter_map(named).collect())
    }

    /// The commands, in order.
    pub(crate) fn commands(&self) -> Vec<&str> {
        let is_command = |(_, entry): &(&String, &Value)| entry["meta-type"] == "command";
        let mut names: Vec<_> = self.0.iter().filter(is_command).map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names
    }

    /// What a command takes, beside what is `given` already: some depend on the value of another.
    pub(crate) fn arguments(&self, command: &str, given: &Map<String, Value>) -> Vec<Argument> {
        match self.0.get(command).filter(|entry| entry["meta-type"] == "command") {
            Some(entry) => self.members(text(&entry["arg-type"]), given),
            None => Vec::new(),
        }
    }

    fn members(&self, object: &str, given: &Map<String, Value>) -> Vec<Argument> {
        let Some(object) = self.0.get(object) else { return Vec::new() };
        let mut all: Vec<Argument> = list(&object["members"])
            .map(|member| Argument {
                name: text(&member["name"]).into(),
                of: text(&member["type"]).into(),
                optional: member.get("default").is_some(),
            })
            .collect();
        let case = object["tag"].as_str().and_then(|tag| given.get(tag));
        for variant in list(&object["variants"]).filter(|variant| Some(&variant["case"]) == case) {
            all.extend(self.members(text(&variant["type"]), given));
        }
        all
    }

    /// What a value of this type can be, where that is a handful of words.
    pub(crate) fn choices(&self, of: &str) -> Vec<&str> {
        match (of, self.0.get(of)) {
            ("bool", _) => vec!["true", "false"],
            (_, Some(entry)) => list(&entry["values"]).map(text).collect(),
            _ => Vec::new(),
        }
    }

    /// A type as people read it.
    pub(crate) fn describe(&self, of: &str) -> String {
        let Some(entry) = self.0.get(of) else { return of.into() };
        match text(&entry["meta-type"]) {
            "enum" => list(&entry["values"]).map(text).collect::<Vec<_>>().join("|"),
            "array" => format!("[{}, …]", self.describe(text(&entry["element-type"]))),
            "object" => "{…}".into(),
            "alternate" => {
                let of = list(&entry["members"]).map(|member| self.describe(text(&member["type"])));
                of.collect::<Vec<_>>().join(" or ")
            }
            _ => of.into(),
        }
    }

    /// Arguments from words: `NAME=VALUE`, `NAME.NAME=VALUE` for what is inside an object, or `NAME`
    /// for true, in any order: members that depend on another's value wait for it. What the schema
    /// does not know goes as it looks: JSON, or text.
    pub(crate) fn read(
        &self,
        command: &str,
        words: &[String],
    ) -> Result<Map<String, Value>, String> {
        let mut made = Map::new();
        let object = self.0.get(command).map_or("", |entry| text(&entry["arg-type"]));
        let put = |word: &str, made: &mut Map<String, Value>| {
            let (path, value) = word.split_once('=').unwrap_or((word, "true"));
            self.put(object, path, value, made).map_err(|why| format!("{path}: {why}"))
        };
        let mut waiting: Vec<&String> = words.iter().collect();
        loop {
            let before = waiting.len();
            let mut later = Vec::new();
            for word in waiting {
                let path = word.split_once('=').map_or(word.as_str(), |(path, _)| path);
                if self.knows(object, path, &made) {
                    put(word, &mut made)?;
                } else {
                    later.push(word);
                }
            }
            waiting = later;
            if waiting.len() == before {
                break;
            }
        }
        waiting.into_iter().try_for_each(|word| put(word, &mut made))?;
        Ok(made)
    }

    /// Whether there is such a member, with what is made of the others so far.
    fn knows(&self, object: &str, path: &str, made: &Map<String, Value>) -> bool {
        let members = self.members(object, made);
        let of = |name: &str| members.iter().find(|member| member.name == name);
        match path.split_once('.') {
            _ if of(path).is_some() => true,
            Some((outer, path)) => of(outer).is_some_and(|outer| {
                let inner = made.get(&outer.name).and_then(Value::as_object);
                self.knows(&outer.of, path, inner.unwrap_or(&Map::new()))
            }),
            None => false,
        }
    }

    fn put(
        &self,
        object: &str,
        path: &str,
        value: &str,
        made: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let members = self.members(object, made);
        let of = |name: &str| members.iter().find(|member| member.name == name);
        let inside =
            path.split_once('.').filter(|(outer, _)| of(path).is_none() && of(outer).is_some());
        if let Some((outer, path)) = inside {
            let inner = made.entry(outer).or_insert_with(|| json!({}));
            let Value::Object(inner) = inner else { return Err("is no object".into()) };
            return self.put(
                &of(outer).map_or(String::new(), |of| of.of.clone()),
                path,
                value,
                inner,
            );
        }
        let value = match of(path) {
            Some(member) => self.value(&member.of, value)?,
            None => untyped(value),
        };
        made.insert(path.into(), value);
        Ok(())
    }

    fn value(&self, of: &str, word: &str) -> Result<Value, String> {
        let entry = self.0.get(of);
        let kind = entry.map_or("", |entry| text(&entry["meta-type"]));
        match (of, kind) {
            ("str", _) => Ok(word.into()),
            ("int", _) => integer(word)
                .ok_or_else(|| format!("'{word}' is no whole number, nor a size such as 64M")),
            ("bool", _) => args::value::switch(word)
                .map(Value::from)
                .map_err(|_| format!("'{word}' is neither true nor false")),
            (_, "enum") => {
                let values = self.choices(of);
                if values.contains(&word) {
                    return Ok(word.into());
                }
                let near = nearest(word, values.iter().copied());
                let near =
                    near.map_or_else(|| values.join(", "), |near| format!("did you mean {near}?"));
                Err(format!("'{word}' is none of its values: {near}"))
            }
            (_, "alternate") => {
                let types = entry.map(|entry| {
                    list(&entry["members"]).map(|of| text(&of["type"])).collect::<Vec<_>>()
                });
                let types = types.unwrap_or_default();
                match untyped(word) {
                    Value::Null if types.contains(&"null") => Ok(Value::Null),
                    _ if types.contains(&"str") => Ok(word.into()),
                    value => Ok(value),
                }
            }
            (_, "array") if !word.trim_start().starts_with('[') => {
                let of = entry.map_or("", |entry| text(&entry["element-type"]));
                let words = word.split(',').filter(|word| !word.is_empty());
                words.map(|word| self.value(of, word)).collect()
            }
            _ => Ok(untyped(word)),
        }
    }

    /// What a line can go on with: where the last word begins, and the words that could stand there.
    pub(crate) fn complete(&self, line: &str) -> (usize, Vec<String>) {
        let start = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let (before, last) = line.split_at(start);
        let mut words = before.split_whitespace().map(String::from);
        let Some(command) = words.next() else {
            let fits = self.commands().into_iter().filter(|name| name.starts_with(last));
            return (start, fits.map(|name| format!("{name} ")).collect());
        };
        let given = self.read(&command, &words.collect::<Vec<_>>()).unwrap_or_default();
        let arguments = self.arguments(&command, &given);
        if let Some((name, value)) = last.split_once('=') {
            let of = arguments.iter().find(|argument| argument.name == name);
            let choices = of.map(|of| self.choices(&of.of)).unwrap_or_default();
            let fits = choices.into_iter().filter(|choice| choice.starts_with(value));
            return (start + name.len() + 1, fits.map(|choice| format!("{choice} ")).collect());
        }
        let fits = arguments
            .iter()
            .filter(|of| of.name.starts_with(last) && !given.contains_key(&of.name));
        (start, fits.map(|of| format!("{}=", of.name)).collect())
    }
}

/// As it looks: JSON, or text.
pub(crate) fn untyped(word: &str) -> Value {
    serde_json::from_str(word).unwrap_or_else(|_| json!(word))
}

fn integer(word: &str) -> Option<Value> {
    if let Ok(number) = word.parse::<i64>() {
        return Some(number.into());
    }
    word.parse()
        .or_else(|_| args::size(word, 1).map_err(drop))
        .map(|number: u64| number.into())
        .ok()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Schema {
        Schema::of(crate::qmp::introspection().into())
    }

    fn read(line: &str) -> Result<Value, String> {
        let mut words = line.split(' ').map(String::from);
        let command = words.next().unwrap();
        own().read(&command, &words.collect::<Vec<_>>()).map(Value::Object)
    }

    #[test]
    fn words_get_the_types_of_the_schema() {
        for (line, want) in [
            ("closefd fdname=5", json!({"fdname": "5"})),
            (
                "migrate-set-parameters max-bandwidth=1G tls-creds=null",
                json!({"max-bandwidth": 1 << 30, "tls-creds": null}),
            ),
            ("migrate uri=tcp:h:1 detach", json!({"uri": "tcp:h:1", "detach": true})),
            ("set-action panic=none", json!({"panic": "none"})),
            ("qmp_capabilities enable=oob", json!({"enable": ["oob"]})),
            (
                "query-cpu-model-expansion type=full model.name=host",
                json!({"type": "full", "model": {"name": "host"}}),
            ),
            ("device_add driver=x bus=7 wrong=7", json!({"driver": "x", "bus": "7", "wrong": 7})),
            ("unknown a=1 b=x", json!({"a": 1, "b": "x"})),
        ] {
            assert_eq!(read(line), Ok(want), "{line}");
        }
        assert_eq!(
            read("set-action panic=non"),
            Err("panic: 'non' is none of its values: did you mean none?".into())
        );
        assert!(read("add-fd fdset-id=x").unwrap_err().contains("whole number"));
        assert!(read("migrate detach=maybe").unwrap_err().contains("neither"));
    }

    #[test]
    fn members_of_a_union_may_stand_in_front_of_its_tag() {
        let all = ["vcpus=/machine/unattached/device[0]", "target=vcpu", "providers=[]"];
        let want = json!({
            "target": "vcpu",
            "vcpus": ["/machine/unattached/device[0]"],
            "providers": [],
        });
        for first in 0..3 {
            for step in [1, 2] {
                let line = (0..3).map(|n| all[(first + n * step) % 3]).collect::<Vec<_>>();
                let line = format!("query-stats {}", line.join(" "));
                assert_eq!(read(&line).as_ref(), Ok(&want), "{line}");
            }
        }
        // A case without this member: it goes as it looks.
        assert_eq!(read("query-stats vcpus=7 target=vm"), Ok(json!({"target": "vm", "vcpus": 7})));
    }

    #[test]
    fn a_line_is_completed() {
        let complete = |line: &str| own().complete(line).1;
        assert_eq!(complete("query-statu").first().map(String::as_str), Some("query-status "));
        assert_eq!(complete("set-action p"), ["panic="]);
        assert_eq!(complete("set-action panic=pause re"), ["reboot="]);
        assert_eq!(complete("set-action panic=p"), ["pause "]);
        assert_eq!(own().complete("set-action panic=p").0, "set-action panic=".len());
        assert!(complete("nonsense x").is_empty());
    }
}
