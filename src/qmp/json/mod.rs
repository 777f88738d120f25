//! JSON as QMP has it, where it differs from everybody else's: a stream of values without
//! separators, single-quoted strings, answers in ASCII, and a fixed way of falling over and
//! standing up again.
//!
//! ```text
//! bytes → lexer::Lexer → tokens → Reader (counts brackets) → parser → Value
//! ```
//!
//! A message ends where its brackets balance; nothing else, no line end, marks it. What a fault
//! leaves behind is part of the protocol (clients resynchronise with a control character) and
//! follows QEMU 10.0.2, as recorded in `tests/vectors/qmp/json_syntax.jsonl` and `limits.jsonl`.

mod lexer;
mod parser;
mod value;
mod write;

pub use parser::SyntaxError;
pub use value::Value;
pub use write::line;
pub(crate) use write::pretty_lines;

use lexer::{KEEP_BYTES, Lexer, Outcome, TOKEN_BYTES_MAX};
use parser::Tokens;

/// Arrays and objects inside one another, together.
const NESTING_MAX: i32 = 1024;
/// Tokens of one message.
const TOKENS_MAX: usize = 2 << 20;

/// Cuts a stream of bytes into messages. Memory is bounded by the limits on one message.
#[derive(Default)]
pub struct Reader {
    lexer: Lexer,
    tokens: Tokens,
    braces: i32,
    brackets: i32,
}

impl Reader {
    pub fn new() -> Reader {
        Reader::default()
    }

    /// Takes bytes from the front of `input` until a message is complete or a fault is found, and
    /// gives it out. `None`: all was taken and more is needed.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Value, SyntaxError>> {
        while let Some((&byte, rest)) = input.split_first() {
            let (outcome, consumed) = self.lexer.step(byte);
            if consumed {
                *input = rest;
            }
            match outcome {
                Outcome::More => {}
                Outcome::Token(kind) => {
                    if let Some(message) = self.token(kind) {
                        return Some(message);
                    }
                }
                Outcome::Stray => {
                    let text = self.lexer.take_stray();
                    self.reset();
                    return Some(Err(SyntaxError::Stray(text)));
                }
            }
        }
        None
    }

    fn token(&mut self, kind: lexer::Kind) -> Option<Result<Value, SyntaxError>> {
        use lexer::Kind;
        match kind {
            Kind::ObjectOpen => self.braces += 1,
            Kind::ObjectClose => self.braces -= 1,
            Kind::ArrayOpen => self.brackets += 1,
            Kind::ArrayClose => self.brackets -= 1,
            _ => {}
        }
        let text = self.lexer.text();
        let fault = if self.tokens.bytes() + text.len() + 1 > TOKEN_BYTES_MAX {
            Some(SyntaxError::TokenBytes)
        } else if self.tokens.len() + 1 > TOKENS_MAX {
            Some(SyntaxError::TokenCount)
        } else if self.braces + self.brackets > NESTING_MAX {
            Some(SyntaxError::Nesting)
        } else {
            self.tokens.push(kind, text);
            let open =
                (self.braces > 0 || self.brackets > 0) && self.braces >= 0 && self.brackets >= 0;
            if open {
                self.lexer.clear();
                return None;
            }
            None
        };
        self.lexer.clear();
        let message = match fault {
            Some(fault) => Err(fault),
            None => parser::parse(&self.tokens),
        };
        self.reset();
        Some(message)
    }

    fn reset(&mut self) {
        self.braces = 0;
        self.brackets = 0;
        self.tokens.clear(KEEP_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut bytes: &[u8]) -> Vec<Result<Value, SyntaxError>> {
        let mut reader = Reader::new();
        std::iter::from_fn(|| reader.next(&mut bytes)).collect()
    }

    fn errors(bytes: &[u8]) -> Vec<String> {
        all(bytes).into_iter().filter_map(|message| message.err().map(|e| e.to_string())).collect()
    }

    #[test]
    fn messages_need_no_separator() {
        let got = all(b"{\"a\":1}[2]\"x\"{'b':[{}]}");
        assert_eq!(got.len(), 4);
        assert!(got.iter().all(Result::is_ok));
    }

    #[test]
    fn cut_anywhere_the_messages_are_the_same() {
        let text = br#"{"execute":'query-status',"id":[1,-2.5e+3,"\u00e9\ud83d\ude00",null,true,{"a":{}}]} 7 {"b":1}"#;
        let whole = all(text);
        assert_eq!(whole.len(), 3);
        for cut in 0..text.len() {
            let mut reader = Reader::new();
            let mut got = Vec::new();
            for mut part in [&text[..cut], &text[cut..]] {
                got.extend(std::iter::from_fn(|| reader.next(&mut part)));
            }
            assert_eq!(got, whole, "cut at {cut}");
        }
    }

    #[test]
    fn top_level_number_ends_at_the_next_character() {
        assert!(all(b"12").is_empty());
        assert_eq!(all(b"12\n").len(), 1);
    }

    #[test]
    fn open_bracket_swallows_what_follows_until_a_lexical_fault() {
        assert_eq!(
            errors(b"{\"a\":[}\r\n{\"b\":1}\r\n\x1b\r\n"),
            ["JSON parse error, stray '\x1b'"]
        );
    }

    #[test]
    fn nesting_limit_drops_the_message_at_once() {
        let deep = [b'['; 1024];
        assert!(all(&deep).is_empty());
        let deep = [b'['; 1025];
        assert_eq!(errors(&deep), ["JSON nesting depth limit exceeded"]);
    }

    #[test]
    fn megabytes_of_string_are_one_message() {
        let mut text = vec![b'"'];
        text.resize(5 << 20, b'a');
        text.push(b'"');
        assert_eq!(all(&text).len(), 1);
    }

    #[test]
    fn token_bytes_are_limited_in_one_string_too() {
        let mut text = vec![b'"'];
        text.resize((64 << 20) + 2, b'a');
        assert_eq!(errors(&text), ["JSON token size limit exceeded"]);
    }
}
