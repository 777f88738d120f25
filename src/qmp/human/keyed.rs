//! `driver,key=value,a.b=value` as the object that a QMP command takes: values get the types that its
//! schema has for them.

use super::{Asked, Error, Value};
use crate::args;
use crate::config::Chardev;
use crate::qmp::commands::{Answer, Call, Held, add_chardev, change_chardev, find};
use crate::qmp::schema::{Shape, Type};

/// `text` for the QMP command `name`, whose first key is `implied`.
pub(super) fn ask(asked: &Asked<'_>, name: &str, implied: &str) -> Answer {
    let command = find(name).ok_or_else(|| Error::generic(format_args!("no command {name}")))?;
    let tree = tree(asked.args.text("args"), implied)?;
    let tree = match name {
        "object-add" => of_object(tree),
        _ => typed_members(tree, command.arguments),
    };
    asked.ask_with(name, &tree)
}

/// `chardev-add` and `chardev-change`: keys are those of `-chardev`, where QMP has them in another
/// order.
pub(super) fn chardev(asked: &Asked<'_>, id: Option<&str>) -> Answer {
    let mut text = asked.args.text("args").to_owned();
    if let Some(id) = id {
        if args::split(&text, Some("backend")).into_iter().any(|(key, _)| key == "id") {
            return Err(Error::generic("Unexpected 'id' parameter"));
        }
        text += &format!(",id={}", id.replace(',', ",,"));
    }
    let described: Chardev = args::chardev("chardev", &text).map_err(Error::generic)?;
    let held = Held::default();
    let call = Call { vmm: asked.vmm, monitor: asked.monitor, args: asked.args, held: &held };
    match id {
        None => add_chardev(call, described),
        Some(_) => change_chardev(call, described),
    }
}

fn tree(text: &str, implied: &str) -> Result<Vec<(String, Value)>, Error> {
    let mut tree = Vec::new();
    for (key, value) in args::split(text, Some(implied)) {
        let value = value.unwrap_or_else(|| "on".into());
        let path: Vec<&str> = key.split('.').collect();
        put(&mut tree, &path, value).ok_or_else(|| {
            Error::generic(format_args!("Parameter '{key}' is of the wrong shape"))
        })?;
    }
    Ok(tree)
}

fn put(tree: &mut Vec<(String, Value)>, path: &[&str], value: String) -> Option<()> {
    let (name, rest) = path.split_first()?;
    let at = tree.iter().position(|(known, _)| known == name);
    if rest.is_empty() {
        match at.map(|at| &mut tree[at].1) {
            None => tree.push(((*name).to_owned(), Value::Text(value))),
            // Keys that may come several times make lists.
            Some(Value::Array(all)) => all.push(Value::Text(value)),
            Some(Value::Object(_)) => return None,
            Some(one) => *one = Value::Array(vec![one.clone(), Value::Text(value)]),
        }
        return Some(());
    }
    let at = at.unwrap_or_else(|| {
        tree.push(((*name).to_owned(), Value::Object(Vec::new())));
        tree.len() - 1
    });
    match &mut tree[at].1 {
        Value::Object(inner) => put(inner, rest, value),
        _ => None,
    }
}

fn typed_members(members: Vec<(String, Value)>, shape: &Shape) -> Vec<(String, Value)> {
    let chosen = shape.union.as_ref().and_then(|union| {
        let (_, tag) = members.iter().find(|(name, _)| name == union.tag)?;
        let tag = tag.as_str()?;
        Some(union.branches.iter().find(|(name, _)| *name == tag)?.1)
    });
    let of = |name: &str| {
        let all = shape.members.iter().chain(chosen.into_iter().flat_map(|branch| branch.members));
        all.into_iter().find(|member| member.name == name).map(|member| member.of)
    };
    let one = |(name, value): (String, Value)| {
        let value = match of(&name) {
            Some(of) => typed(value, &of),
            None => value,
        };
        (name, value)
    };
    members.into_iter().map(one).collect()
}

/// What cannot be of its type stays text, which the schema complains of.
pub(super) fn typed(value: Value, of: &Type) -> Value {
    match (value, of) {
        (Value::Object(inner), Type::Object(shape)) => Value::Object(typed_members(inner, shape)),
        (Value::Array(all), Type::List(of)) => {
            Value::Array(all.into_iter().map(|one| listed(one, of)).collect())
        }
        (Value::Array(mut all), of) => all.pop().map_or(Value::Null, |last| typed(last, of)),
        (value @ Value::Text(_), Type::List(of)) => Value::Array(vec![listed(value, of)]),
        (Value::Text(text), of) => scalar(text, of),
        (value, _) => value,
    }
}

/// Texts in lists are objects around a text.
fn listed(value: Value, of: &Type) -> Value {
    match (value, of) {
        (Value::Text(text), Type::Object(_)) => {
            Value::Object(vec![("str".into(), Value::Text(text))])
        }
        (value, of) => typed(value, of),
    }
}

fn scalar(text: String, of: &Type) -> Value {
    let number = |text: &str| {
        let number = args::value::size(text, 1).ok()?;
        Some(Value::Number(number.to_string().into()))
    };
    let made = match of {
        Type::Bool => args::value::switch(&text).ok().map(Value::Bool),
        Type::Int | Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::Number => number(&text),
        _ => None,
    };
    made.unwrap_or(Value::Text(text))
}

/// Of an object the types are those of its keys.
fn of_object(members: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let of = members.iter().find(|(name, _)| name == "qom-type").and_then(|(_, of)| of.as_str());
    let keys = of.and_then(args::object_keys).unwrap_or_default();
    let one = |(name, value): (String, Value)| {
        let of = keys.iter().find(|key| key.name == name).map(|key| match key.of() {
            args::ParameterType::Boolean => Type::Bool,
            args::ParameterType::Size | args::ParameterType::Number => Type::U64,
            _ => Type::Text,
        });
        (name, typed(value, &of.unwrap_or(Type::Text)))
    };
    members.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_what_the_schema_has() {
        let shape = find("netdev_add").unwrap().arguments;
        let made = |text| {
            let members = typed_members(tree(text, "type").unwrap(), shape);
            crate::qmp::schema::check(&members, shape, "").unwrap();
            serde_json::to_string(&Value::Object(members)).unwrap()
        };
        assert_eq!(
            made("user,id=n,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4,ipv4=off"),
            r#"{"type":"user","id":"n","hostfwd":[{"str":"tcp::1-:2"},{"str":"tcp::3-:4"}],"ipv4":false}"#
        );
        assert_eq!(
            made("stream,id=n,server=on,addr.type=unix,addr.path=/a,,b"),
            r#"{"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"/a,b"}}"#
        );
    }

    #[test]
    fn a_key_has_one_shape() {
        assert!(tree("user,a=1,a.b=2", "type").is_err() && tree("user,a.b=1,a=2", "type").is_err());
        assert!(tree("user,a=1,a=2,a.b=3", "type").is_err());
    }
}
