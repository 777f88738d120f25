//! Bytes to tokens.
//!
//! After a fault everything is skipped up to a character that can only stand between tokens; that
//! character is then read as the first of a new message.

/// Bytes of all tokens of one message; white space is free.
pub(super) const TOKEN_BYTES_MAX: usize = 64 << 20;
/// A message's buffers are given back if they grew past this.
pub(super) const KEEP_BYTES: usize = 64 << 10;

/// Where a token is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Recovery,
    /// In a string, up to this quote.
    Text(u8),
    /// Behind a backslash in such a string.
    Escape(u8),
    /// Behind a minus.
    Sign,
    Zero,
    Digits,
    /// Behind a decimal point.
    Point,
    Fraction,
    /// Behind an `e`.
    Exponent,
    ExponentSign,
    ExponentDigits,
    Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ObjectOpen,
    ObjectClose,
    ArrayOpen,
    ArrayClose,
    Colon,
    Comma,
    Text,
    Number,
    Word,
}

pub(crate) enum Outcome {
    More,
    Token(Kind),
    /// No token goes on like this; [`Lexer::take_stray`] has the text so far.
    Stray,
}

#[derive(Default)]
pub(crate) struct Lexer {
    state: State,
    text: Vec<u8>,
}

impl Lexer {
    /// The bytes of the token that just ended.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Forgets the token that just ended.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEEP_BYTES);
    }

    /// The text of a fault, as far as QEMU shows it: up to the first NUL, with U+FFFD for what is
    /// not a character.
    pub(crate) fn take_stray(&mut self) -> String {
        let shown = self.text.split(|&b| b == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(shown).into_owned();
        self.clear();
        text
    }

    /// One byte further. The flag says whether the byte was used up; if not, it has to be offered
    /// again.
    pub(crate) fn step(&mut self, byte: u8) -> (Outcome, bool) {
        use State::*;
        // Give up on an endless token before it fills the memory: one byte past the limit is enough
        // for the reader to refuse it.
        if self.text.len() > TOKEN_BYTES_MAX {
            self.state = Recovery;
            return (Outcome::Token(Kind::Text), false);
        }
        let next = match (self.state, byte) {
            (Recovery, b'[' | b']' | b'{' | b'}' | b':' | b',' | 0xfe | 0xff) => {
                return self.resume();
            }
            (Recovery, 0..=0x1f) if byte != b'\t' => return self.resume(),
            (Recovery, _) => return (Outcome::More, true),

            (Start, b' ' | b'\t' | b'\r' | b'\n') => return (Outcome::More, true),
            (Start, b'{') => return self.whole(byte, Kind::ObjectOpen),
            (Start, b'}') => return self.whole(byte, Kind::ObjectClose),
            (Start, b'[') => return self.whole(byte, Kind::ArrayOpen),
            (Start, b']') => return self.whole(byte, Kind::ArrayClose),
            (Start, b':') => return self.whole(byte, Kind::Colon),
            (Start, b',') => return self.whole(byte, Kind::Comma),
            (Start, b'"' | b'\'') => Text(byte),
            (Start, b'-') => Sign,
            (Start, b'0') => Zero,
            (Start, b'1'..=b'9') => Digits,
            (Start, b'a'..=b'z') => Word,

            (Text(quote), _) if byte == quote => return self.whole(byte, Kind::Text),
            (Text(quote), b'\\') => Escape(quote),
            (Text(quote), 0x20..=0xfd) => Text(quote),
            (Escape(quote), 0x20..=0xfd) => Text(quote),

            (Sign, b'0') => Zero,
            (Sign, b'1'..=b'9') | (Digits, b'0'..=b'9') => Digits,
            (Zero | Digits, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Digits | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            (Zero, b'0'..=b'9') => return self.stray(byte),
            (Zero | Digits | Fraction | ExponentDigits, _) => return self.ended(Kind::Number),

            (Word, b'a'..=b'z') => Word,
            (Word, _) => return self.ended(Kind::Word),

            _ => return self.stray(byte),
        };
        self.state = next;
        self.text.push(byte);
        (Outcome::More, true)
    }

    /// The token ends with this byte.
    fn whole(&mut self, byte: u8, kind: Kind) -> (Outcome, bool) {
        self.text.push(byte);
        self.state = State::Start;
        (Outcome::Token(kind), true)
    }

    /// The token ended before this byte.
    fn ended(&mut self, kind: Kind) -> (Outcome, bool) {
        self.state = State::Start;
        (Outcome::Token(kind), false)
    }

    fn stray(&mut self, byte: u8) -> (Outcome, bool) {
        self.text.push(byte);
        self.state = State::Recovery;
        (Outcome::Stray, true)
    }

    fn resume(&mut self) -> (Outcome, bool) {
        self.state = State::Start;
        (Outcome::More, false)
    }
}
