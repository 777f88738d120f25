//! What the built-in guest is told on its command line.

use crate::suggest::nearest;
use std::str::FromStr;

/// `ws=MIB rate=PAGES_PER_SECOND pattern=seq|random|hot|zipf bytes=N fill=zero|text|random`, in any
/// order.
///
/// The guest reads the same text by itself; this is its host-side twin, so that a slip is refused
/// before anything starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// Size of the working set.
    pub ws_mib: u32,
    /// Pages written per second by all processors together; 0 is as fast as they can.
    pub rate: u32,
    pub pattern: Pattern,
    /// Bytes written in each page, a multiple of 8.
    pub bytes: u32,
    pub fill: Fill,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pattern {
    #[default]
    Seq,
    Random,
    Hot,
    Zipf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fill {
    #[default]
    Zero,
    Text,
    Random,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters { ws_mib: 16, rate: 0, pattern: Pattern::Seq, bytes: 8, fill: Fill::Zero }
    }
}

/// A word that the built-in guest would not understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("the built-in guest knows no {word:?}{}", .nearest.map(|n| format!(", did you mean {n}=?")).unwrap_or_default())]
    Unknown { word: String, nearest: Option<&'static str> },
    #[error("the built-in guest's {key}= expects {expected}, not {value:?}")]
    Value { key: &'static str, value: String, expected: &'static str },
}

const KEYS: [&str; 5] = ["ws", "rate", "pattern", "bytes", "fill"];

impl FromStr for Parameters {
    type Err = ParameterError;

    fn from_str(text: &str) -> Result<Self, ParameterError> {
        let mut parameters = Parameters::default();
        for word in text.split_ascii_whitespace() {
            parameters.set(word)?;
        }
        Ok(parameters)
    }
}

impl Parameters {
    fn set(&mut self, word: &str) -> Result<(), ParameterError> {
        let unknown = |word: &str, name| ParameterError::Unknown {
            word: word.into(),
            nearest: nearest(name, KEYS),
        };
        let (key, value) = word.split_once('=').ok_or_else(|| unknown(word, word))?;
        match key {
            "ws" => self.ws_mib = number("ws", value, 1, 1 << 20, "MiB from 1 to 1048576")?,
            "rate" => {
                self.rate =
                    number("rate", value, 0, 1 << 30, "pages per second, at most 1073741824")?
            }
            "bytes" => {
                self.bytes = number("bytes", value, 8, 4096, "a multiple of 8 from 8 to 4096")?;
                if !self.bytes.is_multiple_of(8) {
                    return Err(wrong("bytes", value, "a multiple of 8 from 8 to 4096"));
                }
            }
            "pattern" => {
                self.pattern = match value {
                    "seq" => Pattern::Seq,
                    "random" => Pattern::Random,
                    "hot" => Pattern::Hot,
                    "zipf" => Pattern::Zipf,
                    _ => return Err(wrong("pattern", value, "seq, random, hot or zipf")),
                }
            }
            "fill" => {
                self.fill = match value {
                    "zero" => Fill::Zero,
                    "text" => Fill::Text,
                    "random" => Fill::Random,
                    _ => return Err(wrong("fill", value, "zero, text or random")),
                }
            }
            _ => return Err(unknown(word, key)),
        }
        Ok(())
    }
}

fn wrong(key: &'static str, value: &str, expected: &'static str) -> ParameterError {
    ParameterError::Value { key, value: value.into(), expected }
}

fn number(
    key: &'static str,
    value: &str,
    min: u32,
    max: u32,
    expected: &'static str,
) -> Result<u32, ParameterError> {
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    let number = value.parse().ok().filter(|n| digits && (min..=max).contains(n));
    number.ok_or_else(|| wrong(key, value, expected))
}
