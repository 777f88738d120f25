//! Tokens of one message to a value.

use std::collections::HashSet;

use super::Value;
use super::lexer::Kind;

/// What is wrong with a message. The texts are QEMU's; clients see them behind class
/// `GenericError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    #[error("JSON parse error, expecting value")]
    ExpectingValue,
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    #[error("JSON parse error, key is not a string in object")]
    Key,
    #[error("JSON parse error, missing : in object pair")]
    Colon,
    #[error("JSON parse error, Missing value in dict")]
    MissingValue,
    #[error("JSON parse error, expected separator in dict")]
    ObjectSeparator,
    #[error("JSON parse error, expected separator in list")]
    ArraySeparator,
    #[error("JSON parse error, duplicate key")]
    DuplicateKey,
    #[error("JSON parse error, premature EOI")]
    PrematureEnd,
    #[error("JSON parse error, invalid escape sequence in string")]
    Escape,
    #[error("JSON parse error, {0} is not a valid Unicode character")]
    Unicode(String),
    #[error("JSON parse error, invalid UTF-8 sequence in string")]
    Utf8,
    #[error("JSON nesting depth limit exceeded")]
    Nesting,
    #[error("JSON token count limit exceeded")]
    TokenCount,
    #[error("JSON token size limit exceeded")]
    TokenBytes,
}

/// The tokens of a message, their texts side by side.
#[derive(Default)]
pub(crate) struct Tokens {
    text: Vec<u8>,
    /// Kind, and end in `text`.
    list: Vec<(Kind, u32)>,
}

impl Tokens {
    pub(crate) fn push(&mut self, kind: Kind, text: &[u8]) {
        self.text.extend_from_slice(text);
        let end =
            u32::try_from(self.text.len()).expect("the reader limits the bytes of all tokens");
        self.list.push((kind, end));
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn clear(&mut self, keep_bytes: usize) {
        self.text.clear();
        self.text.shrink_to(keep_bytes);
        self.list.clear();
        self.list.shrink_to(keep_bytes / size_of::<(Kind, u32)>());
    }
}

/// The first value in `tokens`.
pub(crate) fn parse(tokens: &Tokens) -> Result<Value, SyntaxError> {
    Cursor { tokens, at: 0 }.value()
}

struct Cursor<'a> {
    tokens: &'a Tokens,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Result<Kind, SyntaxError> {
        self.tokens.list.get(self.at).map(|&(kind, _)| kind).ok_or(SyntaxError::PrematureEnd)
    }

    fn take(&mut self) -> Result<(Kind, &'a [u8]), SyntaxError> {
        let &(kind, end) = self.tokens.list.get(self.at).ok_or(SyntaxError::PrematureEnd)?;
        let start = self.at.checked_sub(1).map_or(0, |before| self.tokens.list[before].1);
        self.at += 1;
        Ok((kind, &self.tokens.text[start as usize..end as usize]))
    }

    /// Recursion is bounded by the reader's nesting limit.
    fn value(&mut self) -> Result<Value, SyntaxError> {
        let (kind, text) = self.take()?;
        match kind {
            Kind::ObjectOpen => self.object(),
            Kind::ArrayOpen => self.array(),
            Kind::Text => unquote(text).map(Value::Text),
            Kind::Number => Ok(Value::Number(ascii(text).into())),
            Kind::Word => match text {
                b"true" => Ok(Value::Bool(true)),
                b"false" => Ok(Value::Bool(false)),
                b"null" => Ok(Value::Null),
                _ => Err(SyntaxError::Keyword(ascii(text))),
            },
            Kind::ObjectClose | Kind::ArrayClose | Kind::Colon | Kind::Comma => {
                Err(SyntaxError::ExpectingValue)
            }
        }
    }

    fn object(&mut self) -> Result<Value, SyntaxError> {
        let mut members = Members::default();
        if self.peek()? == Kind::ObjectClose {
            self.take()?;
            return Ok(Value::Object(Vec::new()));
        }
        loop {
            self.pair(&mut members)?;
            match self.take()?.0 {
                Kind::ObjectClose => return Ok(Value::Object(members.list)),
                Kind::Comma => {}
                _ => return Err(SyntaxError::ObjectSeparator),
            }
        }
    }

    fn pair(&mut self, members: &mut Members) -> Result<(), SyntaxError> {
        self.peek()?;
        let Value::Text(key) = self.value()? else { return Err(SyntaxError::Key) };
        if self.take()?.0 != Kind::Colon {
            return Err(SyntaxError::Colon);
        }
        let value = match self.value() {
            Err(SyntaxError::PrematureEnd) => return Err(SyntaxError::MissingValue),
            value => value?,
        };
        members.insert(key, value)
    }

    fn array(&mut self) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        if self.peek()? == Kind::ArrayClose {
            self.take()?;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            match self.take()?.0 {
                Kind::ArrayClose => return Ok(Value::Array(items)),
                Kind::Comma => {}
                _ => return Err(SyntaxError::ArraySeparator),
            }
        }
    }
}

/// An object being read; looks keys up in a set once there are many, so that a hostile object costs
/// no more than its length.
#[derive(Default)]
struct Members {
    list: Vec<(String, Value)>,
    keys: HashSet<String>,
}

impl Members {
    const SEARCHED: usize = 16;

    fn insert(&mut self, key: String, value: Value) -> Result<(), SyntaxError> {
        let known = if self.list.len() < Self::SEARCHED {
            self.list.iter().any(|(old, _)| *old == key)
        } else {
            if self.keys.is_empty() {
                self.keys.extend(self.list.iter().map(|(old, _)| old.clone()));
            }
            !self.keys.insert(key.clone())
        };
        if known {
            return Err(SyntaxError::DuplicateKey);
        }
        self.list.push((key, value));
        Ok(())
    }
}

fn ascii(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// The characters of a quoted token.
fn unquote(token: &[u8]) -> Result<String, SyntaxError> {
    let inner = &token[1..token.len() - 1];
    let mut text = String::with_capacity(inner.len());
    let mut at = 0;
    while at < inner.len() {
        let plain =
            inner[at..].iter().position(|&b| b == b'\\' || b >= 0x80).unwrap_or(inner.len() - at);
        text.extend(inner[at..at + plain].iter().map(|&b| char::from(b)));
        at += plain;
        match inner.get(at) {
            None => {}
            Some(b'\\') => {
                let (c, length) = escape(&token[at + 1..])?;
                text.push(c);
                at += length;
            }
            Some(_) => {
                let (c, length) = utf8(&inner[at..])?;
                text.push(c);
                at += length;
            }
        }
    }
    Ok(text)
}

/// The character that an escape sequence means, and the sequence's length. `rest` starts at the
/// backslash and runs to the closing quote, which is included because QEMU shows it in a complaint
/// about a short `\u`.
fn escape(rest: &[u8]) -> Result<(char, usize), SyntaxError> {
    let simple = match rest[1] {
        b'"' => '"',
        b'\'' => '\'',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode_escape(rest),
        _ => return Err(SyntaxError::Escape),
    };
    Ok((simple, 2))
}

fn unicode_escape(rest: &[u8]) -> Result<(char, usize), SyntaxError> {
    let bad = || SyntaxError::Unicode(ascii(&rest[..rest.len().min(6)]));
    let first = hex4(&rest[2..]).ok_or_else(bad)?;
    let (code, length) = match first {
        0xd800..=0xdbff if rest[6..].starts_with(b"\\u") => {
            let second = hex4(&rest[8..])
                .filter(|second| (0xdc00..=0xdfff).contains(second))
                .ok_or_else(bad)?;
            (0x10000 + ((first & 0x3ff) << 10 | second & 0x3ff), 12)
        }
        _ => (first, 6),
    };
    let c = char::from_u32(code).filter(|&c| !is_noncharacter(c)).ok_or_else(bad)?;
    Ok((c, length))
}

fn hex4(digits: &[u8]) -> Option<u32> {
    let digits = digits.get(..4)?;
    digits.iter().try_fold(0, |code, &digit| Some(code << 4 | char::from(digit).to_digit(16)?))
}

/// The character at the start of `bytes`. The overlong form of U+0000 counts as one, other overlong
/// forms, surrogates and noncharacters do not.
fn utf8(bytes: &[u8]) -> Result<(char, usize), SyntaxError> {
    if bytes.starts_with(&[0xc0, 0x80]) {
        return Ok(('\0', 2));
    }
    let length = match bytes[0] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    let c = bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()?.chars().next());
    c.filter(|&c| !is_noncharacter(c)).map(|c| (c, length)).ok_or(SyntaxError::Utf8)
}

fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || (c as u32) & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(source: &str) -> Result<String, String> {
        unquote(source.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(text(r#""\/\b\f\n\r\t\'\"\\""#).unwrap(), "/\u{8}\u{c}\n\r\t'\"\\");
        assert_eq!(text(r#""\u00e9\ud83d\ude00""#).unwrap(), "é😀");
    }

    #[test]
    fn refused_escape_is_shown() {
        let refused = |s: &str| text(s).unwrap_err();
        assert_eq!(
            refused(r#""\u12""#),
            "JSON parse error, \\u12\" is not a valid Unicode character"
        );
        assert_eq!(refused(r#""\u""#), "JSON parse error, \\u\" is not a valid Unicode character");
        assert_eq!(
            refused(r#""\ud800\u0041""#),
            "JSON parse error, \\ud800 is not a valid Unicode character"
        );
        assert_eq!(
            refused(r#""\ud800""#),
            "JSON parse error, \\ud800 is not a valid Unicode character"
        );
        assert_eq!(
            refused(r#""\ufffe""#),
            "JSON parse error, \\ufffe is not a valid Unicode character"
        );
        assert_eq!(refused(r#""\x""#), "JSON parse error, invalid escape sequence in string");
    }

    #[test]
    fn many_keys_are_still_distinct() {
        let mut members = Members::default();
        for n in 0..1000 {
            members.insert(n.to_string(), Value::Null).unwrap();
        }
        assert_eq!(members.insert("999".into(), Value::Null), Err(SyntaxError::DuplicateKey));
        assert_eq!(members.insert("3".into(), Value::Null), Err(SyntaxError::DuplicateKey));
    }
}
