//! Why a command line was refused: where, and what is wrong there.

use std::fmt;

/// One thing wrong with a command line. Shown as `-M apci=off: microvm has no such property, did
/// you mean acpi?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The option and the part of its value, as typed. Empty if it is about the line as a whole.
    pub at: String,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("no such option{}", or_help(.nearest))]
    UnknownOption { nearest: Option<String> },
    #[error("not an option; every word of a command line belongs to one{}", or_hint(.nearest))]
    StrayWord { nearest: Option<String> },
    #[error("needs a value: {placeholder}")]
    NeedsValue { placeholder: &'static str },
    #[error("takes no value")]
    TakesNoValue,
    #[error("is not UTF-8")]
    NotUtf8,
    #[error("{owner} has no such property{}", or_hint(.nearest))]
    UnknownKey { owner: &'static str, nearest: Option<String> },
    #[error("{0} is missing")]
    MissingKey(&'static str),
    #[error("expects {}{}", one_of(.accepted), or_hint(.nearest))]
    UnknownValue { accepted: Vec<&'static str>, nearest: Option<String> },
    /// Something that QEMU has and Godwit cannot do: what, and what to write instead.
    #[error("{0}")]
    Refused(&'static str),
    #[error("expects a size: a number, with K, M, G or T behind it if you like")]
    NotASize,
    #[error("expects a number from {min} to {max}")]
    OutOfRange { min: u64, max: u64 },
    #[error("expects a size from {min} to {max}")]
    SizeOutOfRange { min: &'static str, max: &'static str },
    #[error("expects a power of two from {min} to {max}")]
    NotAPowerOfTwo { min: u64, max: u64 },
    #[error("expects a name: a letter, then letters, digits, '-', '.' and '_'")]
    NotAnId,
    #[error("expects a UUID: 32 hexadecimal digits in groups of 8-4-4-4-12")]
    NotAUuid,
    #[error("expects {0}")]
    Malformed(&'static str),
    #[error("there is already {0} with this id")]
    DuplicateId(&'static str),
    #[error("there is no {kind} with this id{}", or_hint(.nearest))]
    UnknownId { kind: &'static str, nearest: Option<String> },
    #[error("is already used by {by}")]
    InUse { by: String },
    #[error("is used by nothing; {0}")]
    Unused(&'static str),
    #[error("-m asks for {asked} bytes, this backend has {backend}; the two must agree")]
    SizesDiffer { asked: u64, backend: u64 },
    #[error("{max} bytes are less than the {bytes} of the beginning")]
    BelowSize { max: u64, bytes: u64 },
    #[error("sockets, cores and threads multiply to {product}, not to {cpus}")]
    TopologyDiffers { product: u64, cpus: u64 },
    #[error("{cpus} processors are more than maxcpus={max}")]
    MoreThanMax { cpus: u64, max: u64 },
    #[error("the last processor's APIC id would be {last}, {max} is the highest")]
    ApicIds { last: u32, max: u8 },
    #[error("{0} goes only with {1}")]
    NeedsOther(&'static str, &'static str),
    #[error("{0} cannot go with {1}")]
    Conflict(&'static str, &'static str),
    #[error(transparent)]
    BuiltinGuest(#[from] crate::builtin::ParameterError),
}

impl Problem {
    pub(crate) fn at(self, place: impl Into<String>) -> Error {
        Error { at: place.into(), problem: self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at.as_str() {
            "" => write!(f, "{}", self.problem),
            at => write!(f, "{at}: {}", self.problem),
        }
    }
}

impl std::error::Error for Error {}

/// Everything wrong with a command line, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl From<Error> for Errors {
    fn from(error: Error) -> Self {
        Errors(vec![error])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Error::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Errors {}

fn or_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or(String::new(), |name| format!(", did you mean {name}?"))
}

fn or_help(nearest: &Option<String>) -> String {
    match nearest {
        Some(_) => or_hint(nearest),
        None => ", `godwit run --help` lists them".into(),
    }
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".into(),
        [only] => (*only).into(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
