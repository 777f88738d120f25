//! Values to text: ASCII only, `", "` and `": "` between things, one line ended by CR LF (or
//! several indented ones for a monitor with `pretty=on`).

use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter};

use super::Value;

/// `value` on one line, CR LF included.
pub fn line(value: &impl Serialize) -> Vec<u8> {
    finish(value, Spaced)
}

/// `value` over several lines, indented by four columns.
pub(crate) fn pretty_lines(value: &impl Serialize) -> Vec<u8> {
    finish(value, Pretty(PrettyFormatter::with_indent(b"    ")))
}

fn finish(value: &impl Serialize, formatter: impl Formatter) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).expect("a value with text keys, written to memory");
    out.extend_from_slice(b"\r\n");
    out
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        write_ascii(out, text)
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        write_escape(out, escape)
    }
}

struct Pretty(PrettyFormatter<'static>);

impl Formatter for Pretty {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        write_ascii(out, text)
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        write_escape(out, escape)
    }
}

fn write_ascii<W: ?Sized + Write>(out: &mut W, text: &str) -> io::Result<()> {
    if text.bytes().all(|b| b < 0x7f) {
        return out.write_all(text.as_bytes());
    }
    for c in text.chars() {
        if (c as u32) < 0x7f {
            out.write_all(&[c as u8])?;
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04X}")?;
            }
        }
    }
    Ok(())
}

fn write_escape<W: ?Sized + Write>(out: &mut W, escape: CharEscape) -> io::Result<()> {
    out.write_all(match escape {
        CharEscape::Quote => b"\\\"",
        CharEscape::ReverseSolidus => b"\\\\",
        CharEscape::Solidus => b"/",
        CharEscape::Backspace => b"\\b",
        CharEscape::FormFeed => b"\\f",
        CharEscape::LineFeed => b"\\n",
        CharEscape::CarriageReturn => b"\\r",
        CharEscape::Tab => b"\\t",
        CharEscape::AsciiControl(byte) => return write!(out, "\\u{byte:04X}"),
    })
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Number(text) => {
                let raw = serde_json::value::RawValue::from_string(text.to_string());
                raw.map_err(serde::ser::Error::custom)?.serialize(serializer)
            }
            Value::Text(text) => serializer.serialize_str(text),
            Value::Array(items) => {
                let mut array = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    array.serialize_element(item)?;
                }
                array.end()
            }
            Value::Object(members) => {
                let mut object = serializer.serialize_map(Some(members.len()))?;
                for (key, value) in members {
                    object.serialize_entry(key, value)?;
                }
                object.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn output_is_one_ascii_line() {
        let value = json!({"a": [1, "é\u{7f}😀\u{1}/\"'"], "b": {}});
        let text = String::from_utf8(line(&value)).unwrap();
        assert_eq!(
            text,
            "{\"a\": [1, \"\\u00E9\\u007F\\uD83D\\uDE00\\u0001/\\\"'\"], \"b\": {}}\r\n"
        );
    }

    #[test]
    fn numbers_keep_their_source_text() {
        for number in ["1e400", "-0.0", "18446744073709551616", "0.1"] {
            assert_eq!(line(&Value::Number(number.into())), format!("{number}\r\n").into_bytes());
        }
    }
}
