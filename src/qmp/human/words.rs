//! What is typed behind a command's name becomes arguments, by the rules and in the words of QEMU's
//! human monitor.

use crate::args::value;
use crate::qmp::json::Value;

/// One argument of a command that people type.
#[derive(Clone, Copy)]
pub(super) struct Param {
    pub(super) name: &'static str,
    kind: Kind,
    optional: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `-d`; any of them, in front of the others.
    Flag(char),
    Text,
    /// The same, called otherwise where it is missing.
    File,
    Device,
    /// The rest of the line.
    Rest,
    Number,
    /// A number of MiB.
    Mebibytes,
    /// Bytes with a suffix, MiB without one.
    Size,
    Switch,
}

pub(super) const fn flag(letter: char, name: &'static str) -> Param {
    Param { name, kind: Kind::Flag(letter), optional: true }
}

pub(super) const fn text(name: &'static str) -> Param {
    Param { name, kind: Kind::Text, optional: false }
}

pub(super) const fn file(name: &'static str) -> Param {
    Param { name, kind: Kind::File, optional: false }
}

pub(super) const fn device(name: &'static str) -> Param {
    Param { name, kind: Kind::Device, optional: false }
}

pub(super) const fn rest(name: &'static str) -> Param {
    Param { name, kind: Kind::Rest, optional: false }
}

pub(super) const fn number(name: &'static str) -> Param {
    Param { name, kind: Kind::Number, optional: false }
}

pub(super) const fn mebibytes(name: &'static str) -> Param {
    Param { name, kind: Kind::Mebibytes, optional: false }
}

pub(super) const fn size(name: &'static str) -> Param {
    Param { name, kind: Kind::Size, optional: false }
}

pub(super) const fn switch(name: &'static str) -> Param {
    Param { name, kind: Kind::Switch, optional: false }
}

impl Param {
    pub(super) const fn optional(self) -> Param {
        Param { optional: true, ..self }
    }
}

/// Reads `line`, which follows the name, for the command `name`. The error is what is answered.
pub(super) fn read(
    name: &str,
    params: &[Param],
    line: &str,
) -> Result<Vec<(String, Value)>, String> {
    let mut rest = line.trim_start();
    let mut given = Vec::new();
    let flags: Vec<_> = params
        .iter()
        .filter_map(|param| match param.kind {
            Kind::Flag(letter) => Some((letter, param.name)),
            _ => None,
        })
        .collect();
    while let Some((letter, behind)) = flag_at(rest).filter(|_| !flags.is_empty()) {
        let Some((_, flag)) = flags.iter().find(|(known, _)| *known == letter) else {
            return Err(format!("{name}: unsupported option -{letter}"));
        };
        given.push(((*flag).to_owned(), Value::Bool(true)));
        rest = behind.trim_start();
    }
    for param in params.iter().filter(|param| !matches!(param.kind, Kind::Flag(_))) {
        if rest.is_empty() && param.optional {
            continue;
        }
        let (value, behind) = param.read(name, rest)?;
        given.push((param.name.to_owned(), value));
        rest = behind.trim_start();
    }
    match rest {
        "" => Ok(given),
        _ => Err(format!("{name}: extraneous characters at the end of line")),
    }
}

fn flag_at(text: &str) -> Option<(char, &str)> {
    let mut rest = text.strip_prefix('-')?.chars();
    let letter = rest.next()?;
    let behind = rest.as_str();
    (behind.is_empty() || behind.starts_with(' ')).then_some((letter, behind))
}

impl Param {
    fn read<'a>(&self, name: &str, from: &'a str) -> Result<(Value, &'a str), String> {
        let number = |number: u64| Value::Number(number.to_string().into());
        Ok(match self.kind {
            Kind::Rest if !from.is_empty() => (Value::Text(from.trim_end().to_owned()), ""),
            Kind::Text | Kind::File | Kind::Device | Kind::Rest => {
                let what = match self.kind {
                    Kind::File => "filename",
                    Kind::Device => "block device name",
                    _ => "string",
                };
                let (text, behind) = word(from)?.ok_or(format!("{name}: {what} expected"))?;
                (Value::Text(text), behind)
            }
            Kind::Number => {
                let (value, behind) = integer(from)?;
                (Value::Number(value.to_string().into()), behind)
            }
            Kind::Mebibytes => {
                let (value, behind) = integer(from)?;
                let bytes = u64::try_from(value).ok().and_then(|mib| mib.checked_mul(1 << 20));
                (number(bytes.ok_or("enter a positive value")?), behind)
            }
            Kind::Size => {
                let (text, behind) = word(from)?.ok_or(format!("{name}: invalid size"))?;
                (number(value::size(&text, 1 << 20).map_err(|_| "invalid size")?), behind)
            }
            Kind::Switch => {
                let (text, behind) = word(from)?.unwrap_or_default();
                let on = match text.as_str() {
                    "on" => true,
                    "off" => false,
                    _ => return Err("Expected 'on' or 'off'".into()),
                };
                (Value::Bool(on), behind)
            }
            Kind::Flag(_) => (Value::Bool(true), from),
        })
    }
}

/// A word, which may be quoted.
fn word(from: &str) -> Result<Option<(String, &str)>, String> {
    let Some(quoted) = from.strip_prefix('"') else {
        let end = from.find(char::is_whitespace).unwrap_or(from.len());
        return Ok((end > 0).then(|| (from[..end].to_owned(), &from[end..])));
    };
    let mut text = String::new();
    let mut rest = quoted.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '"' => return Ok(Some((text, rest.as_str()))),
            '\\' => text.push(match rest.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some(same @ ('\\' | '\'' | '"')) => same,
                Some(other) => return Err(format!("unsupported escape code: '\\{other}'")),
                None => break,
            }),
            other => text.push(other),
        }
    }
    Err("unterminated string".into())
}

/// In decimal, hexadecimal or octal, as C writes them.
fn integer(from: &str) -> Result<(i64, &str), String> {
    let (negative, digits) = match from.strip_prefix('-') {
        Some(behind) => (true, behind),
        None => (false, from.strip_prefix('+').unwrap_or(from)),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let radix = match hex {
        Some(_) => 16,
        None if digits.starts_with('0') => 8,
        None => 10,
    };
    let digits = hex.unwrap_or(digits);
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        return Err(match digits.chars().next() {
            None => "unexpected end of expression".into(),
            Some(letter) => format!("invalid char '{letter}' in expression"),
        });
    }
    let (digits, behind) = digits.split_at(end);
    if let Some(operator) = behind.chars().next().filter(|c| "+-*/%&|^".contains(*c)) {
        return Err(format!("'{operator}' behind a number: expressions are not built"));
    }
    // Addresses have 64 bits.
    let value = u64::from_str_radix(digits, radix).map_err(|_| "integer overflow")? as i64;
    Ok((if negative { value.wrapping_neg() } else { value }, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: &[Param] =
        &[flag('d', "detach"), file("path"), number("begin").optional(), switch("on").optional()];

    fn read_all(line: &str) -> Result<String, String> {
        read("save", PARAMS, line).map(|given| {
            let one = |(name, value): &(String, Value)| {
                format!("{name}={}", serde_json::to_string(value).unwrap())
            };
            given.iter().map(one).collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn words_become_arguments() {
        assert_eq!(read_all(" a").unwrap(), r#"path="a""#);
        assert_eq!(
            read_all("-d \"a b\\\"\" 0x10 on").unwrap(),
            r#"detach=true path="a b\"" begin=16 on=true"#
        );
        assert_eq!(read_all("a 010").unwrap(), r#"path="a" begin=8"#);
        assert_eq!(read_all("a -1").unwrap(), r#"path="a" begin=-1"#);
    }

    #[test]
    fn what_is_wrong_is_said_in_qemus_words() {
        for (line, says) in [
            ("", "save: filename expected"),
            ("-d", "save: filename expected"),
            ("-x a", "save: unsupported option -x"),
            ("a x", "invalid char 'x' in expression"),
            ("a 1+1 on", "'+' behind a number: expressions are not built"),
            ("a 1k on", "Expected 'on' or 'off'"),
            ("a 1 maybe", "Expected 'on' or 'off'"),
            ("a 1 on b", "save: extraneous characters at the end of line"),
            ("\"a", "unterminated string"),
            ("\"\\q\"", "unsupported escape code: '\\q'"),
            ("a 99999999999999999999", "integer overflow"),
        ] {
            assert_eq!(read_all(line).unwrap_err(), says, "{line}");
        }
    }
}
